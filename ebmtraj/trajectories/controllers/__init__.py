"""What chooses actions in a comparison of plans: ours and its opponents, one file a family."""
