"""FLOPs of operators: torch's own formulas, its known faults mended, and what costs nothing by convention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from structprune.compat import overloads_of, storage_key
from structprune.ir.schema import Signature, tensors_of
from structprune.ops.boundary import LEAVES

Formula = Callable[[Sequence[Any], dict[str, Any], Any], int]

aten = torch.ops.aten
_FREE_TAGS = frozenset((torch.Tag.pointwise, torch.Tag.view_copy))


def operator_flops(op: Signature, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int | None:
    """FLOPs of one call, two for a multiply and add; ``None`` where no formula is known."""
    own = _OWN.get(op.name)
    if own is not None:
        return own(args, kwargs, out)
    formula = flop_registry.get(overloads_of(op.func))
    if formula is not None:
        return _by_torch(formula, args, kwargs, out)
    return 0 if _is_free(op) else None


def _by_torch(formula: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """One of torch's formulas, which are of shapes: its own wrapper walks trees for them, ten times as long."""
    of_shapes = getattr(formula, "__wrapped__", None)
    if of_shapes is None or not isinstance(out, torch.Tensor):
        return int(formula(*args, **kwargs, out_val=out))
    named = {name: _shape(value) for name, value in kwargs.items()}
    return int(of_shapes(*map(_shape, args), **named, out_shape=out.shape))


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else value


def is_counted(op: Signature) -> bool:
    """Whether an operator has a formula: all others cost nothing, or are not known."""
    return op.name in _OWN or overloads_of(op.func) in flop_registry


def _is_free(op: Signature) -> bool:
    """Whether an operator has no contraction: moves, compares or adds up entries, or works on each alone."""
    known = _FREE_BY_NAME.get(op.name)
    if known is None:
        known = op.func.is_view or not _FREE_TAGS.isdisjoint(op.func.tags) or _is_free_backward(op.name)
        _FREE_BY_NAME[op.name] = known
    return known


def _is_free_backward(name: str) -> bool:
    """The gradient of an operator without contraction has none either."""
    namespace, _, name = name.partition("::")
    forward = name.removesuffix("_backward")
    if forward == name or namespace != "aten":
        return False
    packet = getattr(aten, forward, None)
    overloads = [] if packet is None else [getattr(packet, o) for o in packet.overloads()]
    return f"aten::{forward}" in _FREE_BY_NAME or any(not _FREE_TAGS.isdisjoint(o.tags) for o in overloads)


def _convolution_backward(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """One forward's work for each of the two gradients that are asked for, at any number of groups.

    torch's own formula reads the weight of the transposed convolution as if it had one group, and
    counts forward + backward over forward as 2 + groups where it is 3.
    """
    grad, x, weight = args[:3]
    transposed, mask = args[7], args[10]
    # Every entry of the smaller-channelled side of the kernel meets every position once.
    positions = x if transposed else grad
    macs = positions.numel() * weight.numel() // max(weight.shape[0], 1)
    return 2 * int(macs) * (int(mask[0]) + int(mask[1]))


def _matrix_vector(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    return 2 * int(args[0].numel())


def _added_matrix_vector(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    return 2 * int(args[1].numel())


def _added_batches(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    batch, rows, inner = args[1].shape
    return 2 * int(batch * rows * inner * args[2].shape[2])


def _linear(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    return 2 * int(out.numel()) * int(args[1].shape[-1])


def _integer_product(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    return 2 * int(out.numel()) * int(args[0].shape[-1])


def _grouped_product(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Every row meets one matrix; with two flat operands every column of the one meets one row of the other."""
    flat = args[0].ndim == args[1].ndim == 2
    return 2 * int(args[0].numel() * args[1].shape[-1] if flat else out.numel() * args[0].shape[-1])


def _added_product(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    return 2 * int(out.numel()) * int(args[1].shape[-1])


def _trilinear(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """The sum over ``sumdim`` of three expanded factors, as two contractions, the cheaper order aside."""
    factors, expansions = args[:3], args[3:6]
    shapes = []
    for factor, dims in zip(factors, expansions, strict=True):
        shape = list(factor.shape)
        for dim in sorted(dims):
            shape.insert(dim, 1)
        shapes.append(shape)
    return 2 * math.prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _attention(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    return int(sdpa_flop_count(*(a.shape for a in args[:3])))  # type: ignore[no-untyped-call]


def _recurrent_layer(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """``mkldnn_rnn_layer``: every step multiplies each weight matrix by one vector a sequence."""
    x, weights = args[0], args[1:3]
    return 2 * int(x.shape[0] * x.shape[1] * sum(w.numel() for w in weights))


_OWN: dict[str, Formula] = {
    "aten::convolution_backward": _convolution_backward,
    "aten::mv": _matrix_vector,
    "aten::addmv": _added_matrix_vector,
    "aten::dot": _matrix_vector,
    "aten::vdot": _matrix_vector,
    "aten::addbmm": _added_batches,
    "aten::linear": _linear,
    "aten::mkldnn_linear": _linear,
    "aten::_int_mm": _integer_product,
    "aten::_grouped_mm": _grouped_product,
    "aten::_addmm_activation": _added_product,
    "aten::_trilinear": _trilinear,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::mkldnn_rnn_layer": _recurrent_layer,
}

# By the field's convention these cost nothing: they contract nothing. Where PyTorch tags an operator as pointwise or a
# view, the tag says so and it is not listed here; those that only some versions tag are.
_FREE_NAMES = """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
    miopen_batch_norm batch_norm_update_stats _batch_norm_with_update _batch_norm_no_update native_layer_norm
    native_group_norm _fused_rms_norm renorm _softmax _log_softmax _safe_softmax _masked_softmax
    max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_max_pool2d
    adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d fractional_max_pool2d fractional_max_pool3d
    max_unpool2d max_unpool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d grid_sampler_2d
    grid_sampler_3d affine_grid_generator reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d constant_pad_nd pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle im2col col2im roll flip rot90 repeat repeat_interleave cat stack index_select gather
    scatter scatter_add scatter_reduce index index_put _index_put_impl index_add index_copy index_fill
    index_reduce take put _unsafe_index _unsafe_index_put masked_fill masked_scatter masked_select nonzero
    nonzero_static where embedding _embedding_bag one_hot bucketize searchsorted sort topk argsort kthvalue
    median nanmedian mode unique_dim unique_consecutive _unique2 bincount histc cumsum cumprod cummax cummin
    logcumsumexp _logcumsumexp _cummax_helper _cummin_helper trace sum all any amax amin aminmax argmax argmin
    count_nonzero linalg_vector_norm logsumexp max mean min nansum norm prod std std_mean var var_mean
    _prelu_kernel native_dropout bernoulli
    multinomial _fused_dropout rand randn randint randperm normal rand_like randn_like randint_like uniform
    exponential geometric log_normal cauchy random rrelu_with_noise arange linspace logspace eye full full_like
    ones ones_like zeros zeros_like empty empty_like empty_strided empty_permuted new_empty new_empty_strided
    new_full new_ones new_zeros scalar_tensor tril_indices triu_indices zero fill copy _to_copy set resize
    _resize_output _unsafe_view _reshape_copy unsafe_split unsafe_split_with_sizes unsafe_chunk tril triu
    diag_embed block_diag _local_scalar_dense item is_same_size sym_size sym_numel sym_stride complex polar isin
    _chunk_cat mse_loss nll_loss_forward nll_loss2d_forward smooth_l1_loss huber_loss binary_cross_entropy glu
    glu_jvp _assert_async _assert_scalar _functional_assert_async _assert_tensor_metadata sym_constrain_range
    record_stream _weight_norm_interface hardswish as_strided _softmax_backward_data _log_softmax_backward_data
    nll_loss_backward embedding_dense_backward embedding_dense
"""
_FREE_BY_NAME: dict[str, bool] = {f"aten::{name}": True for name in _FREE_NAMES.split()}
_FREE_BY_NAME |= {"prim::device": True, LEAVES: True}


def written_bytes(args: Sequence[Any], kwargs: dict[str, Any], results: list[torch.Tensor]) -> int:
    """Bytes of the results that are new memory, not a view of an operand or the operand itself."""
    operands = {storage_key(t) for a in (*args, *kwargs.values()) for t in tensors_of(a)}
    return sum(nbytes(t) for t in results if storage_key(t) not in operands)


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's entries."""
    return tensor.numel() * tensor.element_size()
