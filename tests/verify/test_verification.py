"""What is handed out is run first, on the model's own numbers: a wrong cut is an error, and the model is as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import structprune
from structprune import OptionError, Plan, VerificationError
from structprune.verify import verification
from tests.support.small import TinyResNet

Tensor = torch.Tensor
IMAGE = torch.zeros(1, 3, 16, 16)
X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
FREE: dict[str, Any] = {"keep_representation": False, "round_to": 1}


class Between(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x), self))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def torn(plan: Plan) -> Plan:
    """The plan with other inputs of the last layer than the outputs of the first."""
    rest = tuple(sorted(set(range(16)) - set(plan.kept["b.weight"][1])))
    return replace(plan, kept={**plan.kept, "b.weight": {1: rest}})


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("verify", ["auto", True])
def test_a_plan_that_is_wrong_is_an_error_and_changes_nothing(verify: Any, inplace: bool) -> None:
    model: Any = Between(lambda h, m: torch.tanh(h))
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    before, moments = state(model), {k: v["exp_avg"].clone() for k, v in optimizer.state.items()}
    plan = torn(structprune.plan_pruning(model, 0.5, example_inputs=X, **FREE))
    with pytest.raises(VerificationError, match=r"removes some slices of a channel .* a.weight\[dim 0\]"):
        plan.apply(model, inplace=inplace, optimizer=optimizer if inplace else None, verify=verify)
    after = state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert all(torch.equal(optimizer.state[k]["exp_avg"], v) for k, v in moments.items())
    assert model.a.out_features == 16 and not hasattr(model, "_structprune_plan")
    wrong: Any = plan.apply(model, verify=False)
    assert wrong.a.out_features == 8


def test_the_error_tells_the_difference_and_where_the_networks_part() -> None:
    class Stale(nn.Module):
        """Reads what no operator of the trace was given: a number beside the model."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.inner, self.b = nn.Linear(8, 16), Inner(), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.inner(self.a(x)))

    class Inner(nn.Module):
        factor = 1.0

        def forward(self, h: Tensor) -> Tensor:
            return h * self.factor

    model = Stale()
    plan = structprune.plan_pruning(model, 0.5, example_inputs=X, **FREE)
    original = verification.cut_copy

    def cut(dense: nn.Module, cut: Any) -> nn.Module:
        made: Any = original(dense, cut)
        made.inner.factor = 3.0
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("structprune.plan.plan.cut_copy", cut)
        with pytest.raises(VerificationError) as caught:
            plan.apply(model)
    said = str(caught.value)
    assert "the outputs differ by" in said and "mul in inner" in said and "ignore=[...]" in said


@pytest.mark.parametrize("verify", ["always", 1, None, "True"])
def test_values_that_verify_does_not_take(verify: Any) -> None:
    with pytest.raises(OptionError, match=r"verify is .*; expected 'auto', True or False"):
        structprune.prune_model(TinyResNet(), 0.5, example_inputs=IMAGE, verify=verify)


def test_where_it_would_cost_much_a_note_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MOST_MACS", 1000)
    small = structprune.prune_model(TinyResNet(), 0.5, example_inputs=IMAGE)
    notes = [note for note in structprune.plan_of(small).notes if note.startswith("not verified")]
    assert len(notes) == 1 and "GMACs" in notes[0] and "verify=True" in notes[0] and "prove" in notes[0]
    checked = structprune.prune_model(TinyResNet(), 0.5, example_inputs=IMAGE, verify=True)
    assert not any("not verified" in note for note in structprune.plan_of(checked).notes)


def test_a_model_without_values() -> None:
    plan = structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE)
    small = plan.apply(TinyResNet().to("meta"))
    assert any("not verified: the model is on the meta device" in note for note in structprune.plan_of(small).notes)
    with pytest.raises(VerificationError, match="cannot be verified: the model is on the meta device"):
        plan.apply(TinyResNet().to("meta"), verify=True)


def test_a_plan_out_of_a_file_infers_its_inputs_or_takes_them() -> None:
    plan = Plan.from_json(structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE).to_json())
    assert not plan.examples
    inferred = structprune.plan_of(plan.apply(TinyResNet()))
    given = structprune.plan_of(plan.apply(TinyResNet(), example_inputs=IMAGE, verify=True))
    assert not any("not verified" in note for note in (*inferred.notes, *given.notes))
    graph = structprune.plan_pruning(Between(lambda h, m: h), 0.5, example_inputs=X, **FREE)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            return self.b(self.a(x) * scale)

    two = structprune.plan_pruning(Two(), 0.5, example_inputs=(X, 2.0), **FREE)
    small = Plan.from_json(two.to_json()).apply(Two())
    assert any("there are no example inputs" in note for note in structprune.plan_of(small).notes)
    assert graph.examples


@pytest.mark.parametrize(
    ("side", "ran", "note"),
    [(32, [32], ""), (17, [], "not verified: there are no example inputs, and none could be inferred")],
)
def test_inputs_are_guessed_without_numbers(
    side: int, ran: list[int], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong guess runs up to where sizes do not fit: with numbers that may take any time and memory."""
    seen: list[int] = []
    check = verification._check

    def sees(plan: Plan, dense: nn.Module, pruned: nn.Module, calls: Any, *, spares: bool) -> None:
        seen.append(calls[0].args[0].shape[-1])
        check(plan, dense, pruned, calls, spares=spares)

    monkeypatch.setattr(verification, "_check", sees)
    left = side - 2
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * left * left, 4))
    plan = structprune.plan_pruning(model, 0.5, example_inputs=torch.zeros(1, 3, side, side), round_to=1)
    small = Plan.from_json(plan.to_json()).apply(model)
    said = [text for text in structprune.plan_of(small).notes if text.startswith("not verified")]
    assert seen == ran and [text.startswith(note) for text in said] == [True] * bool(note)


RIGHT: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "plain": lambda h, m: F.gelu(h),
    "statistics over channels": lambda h, m: F.layer_norm(h, h.shape[-1:]),
    "softmax over channels": lambda h, m: h.softmax(-1),
    "a route by value": lambda h, m: h * 2 if float(h.sum()) > 0 else h,
    "random numbers": lambda h, m: F.dropout(h, 0.5, training=True),
    "attention of the channels": lambda h, m: h * (h @ h.T).softmax(-1).mean(-1, keepdim=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", list(RIGHT))
def test_right_cuts_pass_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    model = Between(RIGHT[name]).to(dtype)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=X.to(dtype), verify=True, **FREE)
    assert small.a.out_features == 8


class Encoder(nn.Module):
    """Padded tokens: PyTorch's fast path returns zeros there, its other way does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.embed, self.layers, self.head = nn.Embedding(50, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 50)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(ids), src_key_padding_mask=ids == 0))  # type: ignore[no-any-return]


IDS = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(0)).tril(8)
ORDINARY: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "padding": (lambda: Encoder().eval().requires_grad_(False), IDS),
    "logits of another dtype": (lambda: Between(lambda h, m: torch.tanh(h)).bfloat16(), X.bfloat16()),
    "a little noise": (lambda: Between(lambda h, m: h + 1e-4 * torch.randn_like(h)), X),
    "binary activations": (lambda: Between(lambda h, m: torch.sign(h) * h.abs().mean(0)), X),
    "random routes": (lambda: Between(lambda h, m: h * (torch.rand(()) > 0.5)), X),
}


@pytest.mark.parametrize("name", list(ORDINARY))
def test_ordinary_networks_are_let_through(name: str) -> None:
    make, x = ORDINARY[name]
    model = make()
    if name == "logits of another dtype":
        model.register_forward_hook(lambda _module, _args, out: out.float())
    small = structprune.prune_model(model, 0.5, example_inputs=x, **FREE)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_outputs_that_are_zero_whatever_is_removed_get_a_note() -> None:
    model: Any = Between(lambda h, m: torch.tanh(h))
    nn.init.zeros_(model.b.weight)
    nn.init.zeros_(model.b.bias)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=X, **FREE)
    right = structprune.prune_model(model, 0.5, example_inputs=X, **FREE)
    assert any("all outputs are zero" in note for note in structprune.plan_of(right).notes)
    with pytest.raises(VerificationError, match="cannot be verified: with these weights all outputs are zero"):
        plan.apply(model, verify=True)


def test_nothing_flows_through_zeros_so_that_constant_inputs_are_varied() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 16, bias=False), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))  # type: ignore[no-any-return]

    model = Bare()
    plan = structprune.plan_pruning(model, 0.5, example_inputs=torch.zeros(2, 8), **FREE)
    small: Any = plan.apply(model, verify=True)
    assert small.a.out_features == 8
    changed = replace(plan, row_scales={"a.weight": (2.0,) * 8})
    with pytest.raises(VerificationError, match="the outputs differ by"):
        changed.apply(model)


def test_a_class_that_merges_weights_when_its_mode_changes_leaves_the_users() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            self.weight.data.mul_(1.0 if mode == self.training else 2.0)
            return super().train(mode)

    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), Merging(16, 8), nn.Tanh(), nn.Linear(8, 4)).train()
    before = state(model)
    structprune.prune_model(model, 0.5, example_inputs=X, **FREE)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_is_compensated_is_verified_without_the_compensation() -> None:
    model = TinyResNet().eval()
    small: Any = structprune.prune_model(model, 0.5, example_inputs=IMAGE, compensate=True, verify=True)
    assert structprune.plan_of(small).shifts
    assert not any("not verified" in note for note in structprune.plan_of(small).notes)


def test_a_forward_that_writes_its_weights_leaves_those_of_both_models() -> None:
    model = Between(lambda h, m: h * m.b.weight.data.clamp_(-0.1, 0.1).abs().mean())
    before = state(model)
    small = structprune.prune_model(model, 0.5, example_inputs=X, verify=True, **FREE)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    kept = structprune.plan_of(small).kept["b.weight"][1]
    assert torch.equal(small.get_parameter("b.weight"), before["b.weight"][:, list(kept)])


def test_verification_leaves_mode_hooks_random_state_and_gradients() -> None:
    model = TinyResNet().train()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before, random = state(model), torch.get_rng_state()
    small = structprune.prune_model(model, 0.5, example_inputs=IMAGE, verify=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and small.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[n]) for n, p in model.named_parameters() if n in grads and p.grad is not None)


PROOFS: list[tuple[str, Callable[[Any], None], str]] = [
    ("another dropout rate", lambda m: setattr(m.drop, "p", 0.9), "'p'"),
    ("another forward in training", lambda m: setattr(m, "extra", 2.0), "in training mode"),
    ("moved batch norm", lambda m: m.train()(torch.randn(4, 8)), "a forward in training mode moved them"),
]


class Trained(nn.Module):
    """Draws random numbers in training, and may do something else there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.drop, self.b = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4)
        self.extra = 1.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(self.a(x)).relu())
        return self.b(h * self.extra if self.training else h)


def test_the_proof_covers_training_with_random_numbers() -> None:
    model = Trained()
    small = structprune.prune_model(model, 0.5, example_inputs=X, **FREE)
    proof = structprune.prove(model, small, X)
    assert proof and "evaluation and training mode, in float64" in str(proof)


@pytest.mark.parametrize(("change", "said"), [p[1:] for p in PROOFS], ids=[p[0] for p in PROOFS])
def test_the_proof_sees_what_differs_in_training(change: Callable[[Any], None], said: str) -> None:
    model = Trained()
    small = structprune.prune_model(model, 0.5, example_inputs=X, **FREE)
    change(small)
    proof = structprune.prove(model, small, X)
    assert not proof and said in proof.reason


class Distance(nn.Module):
    """How far two inputs are apart: 0 for two that are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = (self.second(self.first(z).tanh()) for z in (x, y))
        return (a - b).square().sum(-1)


def test_the_proof_gives_every_input_other_numbers() -> None:
    model, inputs = Distance(), (torch.zeros(2, 8), torch.zeros(2, 8))
    small = structprune.prune_model(model, 0.5, "channel", example_inputs=inputs, **FREE)
    assert small.second.in_features == 8
    proof = structprune.prove(model, small, inputs)
    assert proof, str(proof)
    assert not any("not verified" in note for note in structprune.plan_of(small).notes)


def test_a_network_that_overflows_with_unit_weights_is_proved_with_smaller_ones() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(32, 32, bias=False) for _ in range(5)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x) * 1e62
            return x

    model, x = Grows(), torch.randn(2, 32)
    pruned = structprune.prune_model(model, 0.5, example_inputs=x, keep_representation=False, round_to=1)
    proof = structprune.prove(model, pruned, x)
    assert proof.proved, proof
