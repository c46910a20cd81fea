"""Rollouts of a robot as any loop records them: Gymnasium's Reacher under smooth random actions.

    python own_rollouts.py rollouts.npz 400

`state` (episodes, T+1, S) is qpos and qvel before and after each action, `action` (episodes, T, A) what was done.
"""

import sys

import gymnasium
import numpy as np

out, episodes = sys.argv[1], int(sys.argv[2])
env, noise = gymnasium.make("Reacher-v5"), np.random.default_rng(0)
data = env.unwrapped.data
states, actions = [], []
for episode in range(episodes):
    env.reset(seed=episode)
    state, action = [np.concatenate([data.qpos, data.qvel])], [np.zeros(2)]
    for _ in range(50):
        action.append(np.clip(0.7 * action[-1] + 0.7 * noise.normal(size=2), -1, 1))
        env.step(action[-1])
        state.append(np.concatenate([data.qpos, data.qvel]))
    states.append(state)
    actions.append(action[1:])
np.savez(out, state=np.float32(states), action=np.float32(actions))
