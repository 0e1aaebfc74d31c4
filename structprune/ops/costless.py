"""Operators without a rule that contract nothing, mostly of training: by the field's convention they cost nothing.

Where PyTorch tags an operator as pointwise or a view, the tag says so, and it is not listed here; those that only some
versions tag are.
"""

from __future__ import annotations

from structprune.ir.operators import free

_NAMES = """
    miopen_batch_norm batch_norm_update_stats _masked_softmax avg_pool1d fractional_max_pool2d
    fractional_max_pool3d max_unpool2d max_unpool3d affine_grid_generator native_channel_shuffle _index_put_impl
    take put _unsafe_index _unsafe_index_put nonzero_static _embedding_bag one_hot searchsorted argsort histc
    cumprod _logcumsumexp _cummax_helper _cummin_helper _fused_dropout geometric log_normal cauchy set resize
    _resize_output unsafe_chunk block_diag item is_same_size sym_size sym_numel sym_stride isin _chunk_cat
    mse_loss nll_loss_forward nll_loss2d_forward smooth_l1_loss huber_loss binary_cross_entropy glu_jvp
    _assert_async _assert_scalar _functional_assert_async _assert_tensor_metadata sym_constrain_range
    record_stream _softmax_backward_data _log_softmax_backward_data nll_loss_backward embedding_dense_backward
    embedding_dense soft_margin_loss soft_margin_loss_backward _upsample_lanczos2d_aa
    _upsample_lanczos2d_aa_backward
"""
SPECS = (*free(_NAMES), *free("prim::device"))
