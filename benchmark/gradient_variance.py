"""Measure the variance of reinforce.py's gradient estimate for each --psi, at equal policy and equal episodes.

    python benchmark/gradient_variance.py

Two policies of CartPole-v1, an early and a later one, are those that reinforce.py ends with after few and after many
steps of training, with the critic that it has by then. Each plays batches of 16 episodes, and every Ψ makes its
estimate from the same ones. Its noise is the trace of the estimates' covariance, its signal the squared length of
their mean (less what noise is left in a mean). Only noise relative to signal compares weights of different scale, such
as those of elite. Writes benchmark/results/reinforce_gradient_variance.csv and .png; a minute.
"""

from datetime import date
from unittest import mock

import matplotlib
import torch
from run import RESULTS, ROOT, fingerprint, setting, timed_train, write_csv

import reinforce

POLICIES = {"early": 20_000, "later": 200_000}  # steps of training
PSI = ["total_return", "reward_to_go", "mean_baseline", "value_baseline", "elite"]
STEPS, NUM_ENVS, SEED = 1_000_000, 16, 1  # steps and episodes per batch of the measurement


def estimates(agent, observations, actions, rewards, cuts, valids, args):
    """-∇L (of the policy alone) on one batch for each Ψ: (num_psi, number of weights)."""
    output, values = agent(torch.as_tensor(observations[:-1][valids]))
    log_prob, entropy = agent.log_prob_and_entropy(output, torch.as_tensor(actions[valids]))
    bootstrapped, gradients = rewards.copy(), []
    last_values = agent.critic(torch.as_tensor(observations[1:][cuts])).detach().squeeze(-1)
    bootstrapped[cuts] += args.gamma * last_values.numpy()
    for psi in PSI:
        returns = reinforce.discounted_returns(bootstrapped if psi == "value_baseline" else rewards, args.gamma)
        weights = reinforce.psi_weights(psi, returns, values.detach().numpy(), valids, args.elite_fraction)
        loss, _ = reinforce.reinforce_loss(log_prob, entropy, torch.as_tensor(weights), args.num_envs, 0.0)
        gradient = torch.autograd.grad(loss, list(agent.actor.parameters()), retain_graph=True)
        gradients.append(-torch.cat([g.flatten() for g in gradient]))
    return torch.stack(gradients).double()


def measure(steps):
    """Train for so many steps, then play without learning -> estimates (num_batches, num_psi, ...), mean return."""
    agent = timed_train(reinforce, [f"--total-timesteps={steps}", f"--seed={SEED}", "--eval-episodes=0"]).agent
    batches = []

    def update(agent, optimizer, *batch):
        """In place of the script's own, which would change the policy."""
        batches.append(estimates(agent, *batch))
        return {}

    flags = [f"--total-timesteps={STEPS}", f"--num-envs={NUM_ENVS}", f"--seed={SEED + 1}", "--eval-episodes=0"]
    with mock.patch.object(reinforce, "update", update), mock.patch.object(reinforce, "ActorCritic", lambda *_: agent):
        history = timed_train(reinforce, flags).history
    batches.pop()  # the last batch is cut by the end of training
    return torch.stack(batches), sum(value for _, value in history) / len(history)


def draw(path, rows):
    """A bar of noise relative to signal for each Ψ, one panel a policy."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, len(POLICIES), figsize=(10, 4), dpi=160, sharey=True, layout="constrained")
    for ax, policy in zip(axes, POLICIES, strict=True):
        mine = [row for row in rows if row["policy"] == policy]
        bars = ax.barh([row["psi"] for row in mine], [row["noise_to_signal"] for row in mine], color="#0072B2")
        ax.bar_label(bars, [f"{row['noise_to_signal']:.2g}" for row in mine], padding=4, fontsize=12)
        ax.set_title(f"after {POLICIES[policy]:,} steps, mean return {mine[0]['mean_return']:.0f}", fontsize=13)
        ax.set_xlim(0, 1.2 * max(row["noise_to_signal"] for row in mine))
        ax.tick_params(labelsize=12)
    axes[0].invert_yaxis()
    fig.supxlabel(f"variance of the gradient estimate / |its mean|², batches of {NUM_ENVS} episodes", fontsize=13)
    fig.savefig(path)


def main():
    """Measure, print, write and draw."""
    rows = []
    for policy, steps in POLICIES.items():
        gradients, mean_return = measure(steps)
        noise = gradients.var(0).sum(-1)
        signal = gradients.mean(0).square().sum(-1) - noise / len(gradients)
        print(
            f"\nafter {steps:,} steps, mean return {mean_return:.1f}, {len(gradients)} batches of {NUM_ENVS} episodes"
        )
        for psi, n, s in zip(PSI, noise.tolist(), signal.tolist(), strict=True):
            row = {
                "policy": policy,
                "train_steps": steps,
                "seed": SEED,
                "mean_return": round(mean_return, 1),
                "psi": psi,
            }
            row |= {"batches": len(gradients), "episodes_per_batch": NUM_ENVS, "noise": n, "signal": s}
            row |= {"noise_to_signal": n / s, "noise_to_total_return": n / noise[0].item()}
            rows.append(row | {"code": fingerprint("reinforce"), "date": date.today()} | setting())
            ratios = f"noise/signal {n / s:8.3g}   noise/that of total_return {row['noise_to_total_return']:8.3g}"
            print(f"{psi:15} noise {n:10.4g}   signal {s:10.4g}   {ratios}", flush=True)
    path = RESULTS / "reinforce_gradient_variance.csv"
    write_csv(path, rows)
    draw(path.with_suffix(".png"), rows)
    print(f"\nwrote {path.relative_to(ROOT)} and .png")


if __name__ == "__main__":
    main()
