"""A cost of one's own for `ebmtraj plan --task "... + own_cost:slowly" --own-code`."""


def slowly(path, state_fields, joints=(4.0, 5.0)):
    """Mean squared speed (rad/s)^2 of the arm's two joints over the planned states (B, H, S): one cost a plan, (B,)."""
    return path.states[..., [int(joint) for joint in joints]].square().sum(-1).mean(1)
