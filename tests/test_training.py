"""Training as a whole: the losses of a run beside those of the same run in PyTorch."""

import numpy as np
import pytest
from test_package import imported_by
from tolerances import tolerance

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.training import AdamW, Schedule, decays, training_step

V, STEPS, WARMUP, LR, MAX_NORM = 17, 50, 5, 2e-2, 1.0
CURVE = tolerance("run", "float64")


def their_loss(w, ids, config):
    """Mamba in PyTorch, from the paper and in loops over time: the mean loss of the next ids."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def norm(x, weight):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return weight * x / torch.sqrt(mean_square + config.layer_norm_epsilon)

    def mixer(u, p):
        E, N, R, K = (
            config.intermediate_size, config.state_size, config.time_step_rank, config.conv_kernel
        )  # fmt: skip
        x, z = (u @ p("in_proj.weight").T).split(E, dim=-1)
        h, outputs = torch.zeros(len(u), E, N, dtype=u.dtype), []
        padded = functional.pad(x, (0, 0, K - 1, 0))
        A = -torch.exp(p("A_log"))
        for t in range(u.shape[1]):
            met = (padded[:, t : t + K] * p("conv1d.weight")[:, 0].T).sum(1) + p("conv1d.bias")
            now = functional.silu(met)
            low_rank, B, C = (now @ p("x_proj.weight").T).split([R, N, N], dim=-1)
            delta = functional.softplus(low_rank @ p("dt_proj.weight").T + p("dt_proj.bias"))
            h = torch.exp(delta[..., None] * A) * h + (delta * now)[..., None] * B[:, None]
            outputs.append((h * C[:, None]).sum(-1) + p("D") * now)
        return (torch.stack(outputs, 1) * functional.silu(z)) @ p("out_proj.weight").T

    x = w["backbone.embeddings.weight"][ids]
    for i in range(config.num_hidden_layers):
        layer = f"backbone.layers.{i}."
        u = norm(x, w[f"{layer}norm.weight"])
        x = x + mixer(u, lambda name, layer=layer: w[f"{layer}mixer.{name}"])
    head = w.get("lm_head.weight", w["backbone.embeddings.weight"])
    logits = norm(x, w["backbone.norm_f.weight"]) @ head.T
    return functional.cross_entropy(logits[:, :-1].reshape(-1, V), ids[:, 1:].reshape(-1))


def their_curve(arrays, config, batches):
    """Return PyTorch's losses and gradient norms."""
    torch = pytest.importorskip("torch")
    w = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    groups = [
        {"params": [p for n, p in w.items() if decays(n) == yes], "weight_decay": 0.1 * yes}
        for yes in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / WARMUP, (STEPS - step) / (STEPS - WARMUP))
    )
    curve = []
    for ids in batches:
        optimizer.zero_grad()
        loss = their_loss(w, torch.tensor(ids), config)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(w.values(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        curve.append((loss.item(), norm.item()))
    return np.array(curve), {name: p.detach().numpy() for name, p in w.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_the_losses_of_a_run_are_pytorchs(rng, tied):
    config = MambaConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=2, state_size=4, tie_word_embeddings=tied
    )
    model = MambaForCausalLM(config, rng=1, dtype="float64", backend="numpy").make_writeable()
    steps = rng.integers(1, 4, size=(STEPS, 4, 1))  # rows that count in steps of 1, 2 or 3
    batches = (rng.integers(V, size=steps.shape) + steps * np.arange(12)) % V
    before = {name: array.copy() for name, array in model.state_dict().items()}
    theirs, weights = their_curve(before, config, batches)

    optimiser = AdamW(model.state_dict(), betas=(0.9, 0.95), weight_decay=0.1)
    schedule = Schedule(LR, STEPS, WARMUP)
    ours = []
    for ids in batches:
        batch = {"input_ids": ids, "labels": ids}
        result = training_step(model, optimiser, [batch], schedule(optimiser.step), MAX_NORM)
        ours.append((result.loss, result.grad_norm))

    assert np.abs(np.array(ours) - theirs).max() <= CURVE
    assert theirs[-1, 0] < 0.7 * theirs[0, 0]  # it learnt
    assert 0 < np.mean(theirs[:, 1] > MAX_NORM) < 1  # some steps were clipped, some not
    for name, array in model.state_dict().items():
        assert np.abs(array - weights[name]).max() <= CURVE, name


def test_import_is_light():
    statement = "from mamba_np.training import AdamW, training_step, load_checkpoint"
    assert imported_by(statement) <= {"ml_dtypes"}
