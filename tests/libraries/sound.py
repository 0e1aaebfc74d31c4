"""Speech and music: whisper, encodec, SpeechBrain, SNAC, Vocos and others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.libraries.architecture import Architecture, found, ids, made, sequence, signal
from tests.zoo.calls import Call

_WHISPER: dict[str, int] = {
    "n_mels": 16,
    "n_audio_ctx": 16,
    "n_audio_state": 32,
    "n_audio_head": 4,
    "n_audio_layer": 2,
    "n_vocab": 64,
    "n_text_ctx": 16,
    "n_text_state": 32,
    "n_text_head": 4,
    "n_text_layer": 2,
}


def _whisper() -> nn.Module:
    model: nn.Module = found("whisper.model.Whisper")(found("whisper.model.ModelDimensions")(**_WHISPER))
    return model


def _encodec() -> nn.Module:
    encoder = found("encodec.modules.SEANetEncoder")(dimension=32, n_filters=8, ratios=[4, 2], lstm=1)
    decoder = found("encodec.modules.SEANetDecoder")(dimension=32, n_filters=8, ratios=[4, 2], lstm=1)
    return nn.Sequential(encoder, decoder)


def _snac() -> nn.Module:
    model: nn.Module = found("snac.SNAC")(
        encoder_dim=16,
        encoder_rates=[2, 4],
        decoder_dim=64,
        decoder_rates=[4, 2],
        attn_window_size=None,
        codebook_size=16,
        vq_strides=[2, 1],
        noise=False,
    )
    return nn.Sequential(model.encoder, model.decoder)


def _conv_tasnet() -> nn.Module:
    model: nn.Module = found("torchaudio.models.ConvTasNet")(
        num_sources=2,
        enc_kernel_size=8,
        enc_num_feats=32,
        msk_kernel_size=3,
        msk_num_feats=16,
        msk_num_hidden_feats=32,
        msk_num_layers=2,
        msk_num_stacks=1,
    )
    return model


_SPEECHBRAIN: dict[str, tuple[str, dict[str, Any], Call]] = {
    "ECAPA-TDNN": (
        "ECAPA_TDNN.ECAPA_TDNN",
        {
            "input_size": 16,
            "channels": [32, 32, 32, 32, 96],
            "lin_neurons": 32,
            "attention_channels": 16,
            "res2net_scale": 4,
            "se_channels": 16,
        },
        sequence(32, 16),
    ),
    "x-vector": (
        "Xvector.Xvector",
        {
            "in_channels": 16,
            "tdnn_blocks": 3,
            "tdnn_channels": [32, 32, 64],
            "tdnn_kernel_sizes": [3, 3, 1],
            "tdnn_dilations": [1, 2, 1],
            "lin_neurons": 32,
        },
        sequence(32, 16),
    ),
    "CRDNN": (
        "CRDNN.CRDNN",
        {
            "input_shape": [None, None, 16],
            "cnn_blocks": 1,
            "cnn_channels": (16,),
            "rnn_layers": 1,
            "rnn_neurons": 32,
            "dnn_blocks": 1,
            "dnn_neurons": 32,
        },
        sequence(16, 16),
    ),
    "ResNet": (
        "ResNet.ResNet",
        {"input_size": 16, "channels": [16, 16, 32, 32], "block_sizes": [1, 1, 1, 1], "lin_neurons": 32},
        sequence(32, 16),
    ),
}

ARCHITECTURES = [
    Architecture("openai-whisper", "Whisper", _whisper, Call((torch.zeros(1, 16, 32), ids(6)))),
    Architecture("encodec", "SEANet", _encodec, signal(64)),
    Architecture("snac", "SNAC encoder and decoder", _snac, signal(128)),
    Architecture("torchaudio", "ConvTasNet", _conv_tasnet, signal(64)),
    Architecture(
        "torchaudio",
        "Conformer",
        made(
            "torchaudio.models.Conformer",
            input_dim=32,
            num_heads=4,
            ffn_dim=64,
            num_layers=2,
            depthwise_conv_kernel_size=3,
        ),
        Call((torch.zeros(1, 8, 32), torch.tensor([8]))),
    ),
    Architecture(
        "torchaudio",
        "wav2letter",
        made("torchaudio.models.Wav2Letter", num_classes=8, input_type="mfcc", num_features=13),
        signal(64, 13),
    ),
    *(
        Architecture("speechbrain", name, made(f"speechbrain.lobes.models.{path}", **options), call)
        for name, (path, options, call) in _SPEECHBRAIN.items()
    ),
    Architecture(
        "vocos",
        "Vocos backbone",
        made("vocos.models.VocosBackbone", input_channels=16, dim=32, intermediate_dim=64, num_layers=2),
        signal(16, 16),
    ),
]
