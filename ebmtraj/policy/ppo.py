"""A network that corrects the gaits, trained by proximal policy optimisation (Schulman et al. 2017).

It sees the state, its last change, the gait's phase and the commanded axis, and adds at most `residual` to each joint target
of the gait. The critic also sees the true velocities and the random-action clock, which the policy does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ebmtraj.device import weights_from
from ebmtraj.envs import hand_cube
from ebmtraj.envs.trained import (
    AXES,
    FEATURE_SIZE,
    N_ACTIONS,
    OUTPUT_SIZE,
    WEIGHT_BITS,
    WEIGHT_LIMIT,
    Body,
    Memory,
)
from ebmtraj.errors import EbmtrajError
from ebmtraj.policy.simulator import Array, TrainingSimulator, quaternions, rotation_between

Layers = list[tuple[Array, Array]]
CRITIC_EXTRA = 30 + 5  # joint and cube velocities; where the episode stands in the random-action rule


@dataclass(frozen=True)
class PPOConfig:
    """The task and the optimiser; `residual` and `speed` as `Body` has them, without a unit.

    Raises `EbmtrajError` for a setting out of its range.
    """

    iterations: int = 200  # updates
    batch: int = 512  # episodes side by side
    horizon: int = 24  # control steps between updates
    epochs: int = 4  # over the steps of an update
    minibatch: int = 3072  # steps a gradient step
    gamma: float = 0.99  # discount a control step
    lam: float = 0.95  # of the generalised advantage estimate
    clip: float = 0.2  # of the ratio of probabilities
    learning_rate: float = 4e-4  # at the start; then it follows the divergence
    target_kl: float = 0.016  # divergence of an update that the rate is kept for
    entropy: float = 0.0  # weight of the policy's entropy
    max_gradient: float = 1.0  # norm above which a gradient is scaled down
    hidden: tuple[int, ...] = (256, 128)  # units of each hidden layer
    log_std: float = -1.0  # at the start
    residual: float = 0.5
    speed: float = 0.5
    reward_turn: float = 10.0  # a radian
    reward_clip: float = 0.3  # rad a step that count at most
    reward_drop: float = 30.0  # taken away once
    switch_probability: float = 0.02  # of a new command, each step
    random_share: float = 0.6  # of the episodes have every 4th action random
    max_steps: int = 200  # of an episode

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "horizon", "epochs", "minibatch", "max_steps"):
            if getattr(self, name) < 1:
                raise EbmtrajError(f"ppo.{name} is {getattr(self, name)}; give a whole number of at least 1")
        if not self.hidden or min(self.hidden) < 1:
            raise EbmtrajError(f"ppo.hidden is {list(self.hidden)}; give the widths of one layer or more")
        for name in ("gamma", "lam", "switch_probability", "random_share", "residual", "speed"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise EbmtrajError(f"ppo.{name} is {getattr(self, name)}; give a number from 0 to 1")
        for name in ("learning_rate", "target_kl", "clip", "max_gradient"):
            if not getattr(self, name) > 0.0:
                raise EbmtrajError(f"ppo.{name} is {getattr(self, name)}; give a number above 0")


class Network(nn.Module):
    """A plain network with hidden units x above zero, x / (1 - x) below."""

    def __init__(self, sizes: tuple[int, ...], last_gain: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight, 2.0**0.5 if layer is not self.layers[-1] else last_gain)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in) -> (B, out)`."""
        for layer in self.layers[:-1]:
            x = layer(x)
            x = torch.where(x > 0, x, x / (1 + x.abs()))
        return self.layers[-1](x)

    def rounded(self) -> Layers:
        """Weights (in, out) and biases in the exact fractions that `envs.trained` computes with."""

        def fraction(value: Tensor, bits: int) -> Array:
            return np.rint(np.clip(value.detach().double().numpy(), -WEIGHT_LIMIT, WEIGHT_LIMIT) * 2.0**bits) * 2.0**-bits

        return [(fraction(m.weight.T, WEIGHT_BITS), fraction(m.bias, WEIGHT_BITS)) for m in self.layers]  # type: ignore[arg-type]


class Task:
    """B episodes of turning on command, with restarts: the simulator, the memory and the random-action rule.

    `starts` (N, 62) are full physics states, of which each episode draws one.
    """

    def __init__(
        self, body: Body, config: PPOConfig, simulator: TrainingSimulator, starts: Array, generator: np.random.Generator
    ) -> None:
        self.body, self.config, self.simulator, self.starts = body, config, simulator, starts
        self.generator = generator
        b = config.batch
        self.physics = starts[generator.integers(len(starts), size=b)].copy()
        self.age = generator.integers(config.max_steps, size=b)  # so that episodes do not end together
        self.clock = generator.integers(4, size=b)
        self.noisy = generator.random(b) < config.random_share
        self.memory = Memory.start(*self._commands(b), self.states)

    @property
    def states(self) -> NDArray[np.float32]:
        """(B, 31)."""
        return hand_cube.states_of(self.physics)

    def _commands(self, n: int) -> tuple[NDArray[np.int64], Array]:
        return self.generator.integers(6, size=n), self.generator.uniform(0.0, 2.0 * np.pi, n)

    def observe(self) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
        """Features (B, F), critic features (B, F + 35), the gait's targets (B, 20), and whose next action is random (B,)."""
        features, base = self.body.observe(self.states, self.memory)
        random = self.noisy & (self.clock % 4 == 0)
        rule = np.concatenate([np.eye(4)[self.clock % 4] * self.noisy[:, None], self.noisy[:, None]], axis=1)
        velocity = self.physics[:, 32:62] * np.r_[np.full(24, 0.3), np.full(3, 4.0), np.full(3, 0.4)]
        return features, np.concatenate([features, np.clip(velocity, -8, 8), rule], axis=1), base, random

    def step(
        self, base: Array, output: Array, random: NDArray[np.bool_]
    ) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.bool_]]:
        """Act; return rewards (B,), turning about the command (B,), who dropped and whose time is over (B,)."""
        config, generator = self.config, self.generator
        axis = self.memory.axis
        actions = self.body.act(self.states, base, output, self.memory)
        actions[random] = generator.uniform(-1.0, 1.0, (int(random.sum()), N_ACTIONS))
        before = quaternions(self.physics)
        self.physics, dropped = self.simulator.step(self.physics, actions)
        turned = (rotation_between(before, quaternions(self.physics)) * AXES[axis]).sum(axis=1)
        clipped = np.clip(turned, -config.reward_clip, config.reward_clip)
        reward = config.reward_turn * clipped * ~dropped - config.reward_drop * dropped
        self.age += 1
        self.clock += 1
        return reward, clipped, dropped, self.age >= config.max_steps

    def advance(self, ended: NDArray[np.bool_]) -> None:
        """Restart what has ended, of B episodes `(B,)`, and switch some commands."""
        switch = self.generator.random(len(ended)) < self.config.switch_probability
        other = (self.memory.axis + self.generator.integers(1, 6, size=len(ended))) % 6
        self.memory.axis = np.where(switch, other, self.memory.axis)
        rows = np.flatnonzero(ended)
        if len(rows):
            self.physics[rows] = self.starts[self.generator.integers(len(self.starts), size=len(rows))]
            self.age[rows] = 0
            self.clock[rows] = self.generator.integers(4, size=len(rows))
            self.noisy[rows] = self.generator.random(len(rows)) < self.config.random_share
            states = hand_cube.states_of(self.physics[rows])
            self.memory.put(rows, Memory.start(*self._commands(len(rows)), states))


@dataclass(frozen=True)
class Iteration:
    """What one iteration saw."""

    iteration: int
    turned: float  # rad per 100 steps about the command
    turned_quiet: float  # the same (rad per 100 steps) of episodes without random actions
    drops: float  # per 100 steps
    divergence: float
    learning_rate: float
    spread: float  # mean standard deviation of the output


def train_residual(
    gaits: Array,
    config: PPOConfig,
    simulator: TrainingSimulator,
    starts: Array,
    seed: int,
    on_iteration: Callable[[Iteration, Callable[[], Layers]], None] | None = None,
) -> Layers:
    """Train the network that corrects `gaits` (6, 61); returns its layers, rounded as they will run.

    Episodes begin in `starts` (N, 62), full physics states. The same seed gives the same bits on one machine with one number
    of torch threads. `on_iteration` is told the state of things, and can ask for the present layers.
    """
    seeds = np.random.SeedSequence(seed).spawn(2)
    torch_generator = torch.Generator().manual_seed(int(seeds[0].generate_state(1)[0]))
    task = Task(Body(gaits, config.residual, config.speed), config, simulator, starts, np.random.default_rng(seeds[1]))
    with weights_from(int(seeds[0].generate_state(2)[1])):
        actor = Network((FEATURE_SIZE, *config.hidden, OUTPUT_SIZE), 0.01)
        critic = Network((FEATURE_SIZE + CRITIC_EXTRA, *config.hidden, 1), 1.0)
    log_std = nn.Parameter(torch.full((OUTPUT_SIZE,), config.log_std))
    parameters = [*actor.parameters(), *critic.parameters(), log_std]
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    rate = config.learning_rate
    for iteration in range(config.iterations):
        batch, stats = _collect(task, actor, critic, log_std, config, torch_generator)
        rate, divergence = _update(batch, actor, critic, log_std, optimiser, parameters, rate, config, torch_generator)
        if on_iteration:
            on_iteration(
                Iteration(iteration + 1, *stats, divergence, rate, float(log_std.detach().exp().mean())), actor.rounded
            )
    return actor.rounded()


@torch.no_grad()
def _collect(
    task: Task, actor: Network, critic: Network, log_std: Tensor, config: PPOConfig, generator: torch.Generator
) -> tuple[dict[str, Tensor], tuple[float, float, float]]:
    """`horizon` steps of all episodes, flattened to (T x B, ...), with advantages and returns."""
    rows: dict[str, list[Tensor]] = {k: [] for k in ("x", "xc", "a", "logp", "mean", "value", "reward", "alive", "own")}
    turned, quiet, quiet_steps, drops = 0.0, 0.0, 0, 0
    std = log_std.exp()
    features, critic_features, base, random = task.observe()
    for _ in range(config.horizon):
        x, xc = torch.from_numpy(features).float(), torch.from_numpy(critic_features).float()
        mean, value = actor(x), critic(xc)[:, 0]
        action = mean + std * torch.empty_like(mean).normal_(generator=generator)
        reward, progress, dropped, timeout = task.step(base, action.double().numpy(), random)
        turned += progress.sum()
        quiet += progress[~task.noisy].sum()
        quiet_steps += int((~task.noisy).sum())
        drops += int(dropped.sum())
        ended = dropped | timeout
        own = ~random
        rewards = torch.from_numpy(reward).float() * 0.1
        cut = timeout & ~dropped
        if cut.any():  # the episode would have gone on: its future counts
            _, after, _, _ = task.observe()
            rewards[torch.from_numpy(cut)] += config.gamma * critic(torch.from_numpy(after[cut]).float())[:, 0]
        task.advance(ended)
        features, critic_features, base, random = task.observe()
        logp = _log_prob(action, mean, log_std)
        for key, item in zip(
            rows, (x, xc, action, logp, mean, value, rewards, torch.from_numpy(~ended), torch.from_numpy(own)), strict=True
        ):
            rows[key].append(item)
    stacked = {key: torch.stack(items) for key, items in rows.items()}
    last = critic(torch.from_numpy(critic_features).float())[:, 0]
    advantage = torch.zeros_like(last)
    advantages = torch.empty_like(stacked["value"])
    alive = stacked["alive"].float()
    for t in reversed(range(config.horizon)):
        following = stacked["value"][t + 1] if t + 1 < config.horizon else last
        delta = stacked["reward"][t] + config.gamma * following * alive[t] - stacked["value"][t]
        advantage = delta + config.gamma * config.lam * alive[t] * advantage
        advantages[t] = advantage
    stacked["advantage"], stacked["target"] = advantages, advantages + stacked["value"]
    flat = {key: item.flatten(0, 1) for key, item in stacked.items()}
    own_advantage = flat["advantage"][flat["own"]]
    flat["advantage"] = (flat["advantage"] - own_advantage.mean()) / (own_advantage.std() + 1e-6)
    steps = config.horizon * config.batch
    return flat, (100.0 * turned / steps, 100.0 * quiet / max(quiet_steps, 1), 100.0 * drops / steps)


def _update(
    batch: dict[str, Tensor],
    actor: Network,
    critic: Network,
    log_std: Tensor,
    optimiser: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    rate: float,
    config: PPOConfig,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Some epochs of the clipped objective; random steps teach the critic only. Returns the new rate and the divergence."""
    divergences: list[float] = []
    old_std = log_std.detach().clone()
    n = len(batch["x"])
    for _ in range(config.epochs):
        order = torch.randperm(n, generator=generator)
        for rows in order.split(config.minibatch):
            part = {key: item[rows] for key, item in batch.items()}
            own = part["own"].float()
            mean = actor(part["x"])
            ratio = (_log_prob(part["a"], mean, log_std) - part["logp"]).exp()
            gain = torch.minimum(
                ratio * part["advantage"], ratio.clamp(1 - config.clip, 1 + config.clip) * part["advantage"]
            )
            value = critic(part["xc"])[:, 0]
            # the network's output counts within +-1 only: don't let its mean drift far outside
            excess = (mean.abs() - 1.0).clamp(min=0).square().sum(dim=1)
            loss = (
                -(gain * own).sum() / own.sum()
                + (value - part["target"]).square().mean()
                + 0.02 * (excess * own).sum() / own.sum()
                - config.entropy * log_std.sum()
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.max_gradient)
            with torch.no_grad():
                kl = (
                    log_std - old_std
                    + (torch.exp(2 * old_std) + (part["mean"] - mean).square()) / (2 * torch.exp(2 * log_std)) - 0.5
                ).sum(dim=1)  # fmt: skip
                divergence = float((kl * own).sum() / own.sum())
            divergences.append(divergence)
            if divergence > 2 * config.target_kl:
                rate = max(rate / 1.5, 1e-5)
            elif divergence < 0.5 * config.target_kl:
                rate = min(rate * 1.5, 3e-3)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
    return rate, float(np.mean(divergences[-4:]))


def _log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log density, up to a constant, of diagonal Gaussians, `(B, A) -> (B,)`."""
    return (-0.5 * ((action - mean) * torch.exp(-log_std)).square() - log_std).sum(dim=-1)
