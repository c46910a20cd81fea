"""What makes the shipped data policy: gait search and residual PPO on the batched simulator."""
