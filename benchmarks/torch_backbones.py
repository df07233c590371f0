"""The four backbones in eager PyTorch, as a user would run them: the yardsticks of `benchmarks.models`.

AST is transformers' own. HTS-AT is transformers' CLAP audio encoder, which is HTS-AT up to its last convolution, added
here. BEATs is in no package; its encoder is WavLM's (gated relative positions, the same sizes), with BEATs' patch
embedding added here. EfficientAT is our own transcription. transformers is no dependency of this project; without
it the yardsticks that need it are left out.
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.torch_efficientat import TorchEfficientAT


class _HTSAT(nn.Module):
    def __init__(self, num_classes: int):
        from transformers import ClapAudioConfig, ClapAudioModel

        super().__init__()
        settings = dict(hidden_dropout_prob=0.0, drop_path_rate=0.1, attn_implementation="eager")
        self.body = ClapAudioModel(ClapAudioConfig(**settings))
        self.head = nn.Conv2d(768, num_classes, (2, 3), padding=(0, 1))

    def forward(self, features):  # (B, 1, T, 64)
        tokens = self.body(input_features=features, is_longer=features.new_zeros(len(features), 1).bool())
        return self.head(tokens.last_hidden_state.reshape(len(features), 768, 2, 32)).mean((2, 3))


class _BEATs(nn.Module):
    def __init__(self, num_classes: int):
        from transformers import WavLMConfig
        from transformers.models.wavlm.modeling_wavlm import WavLMEncoder

        super().__init__()
        settings = dict(layerdrop=0.0, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
        self.patches = nn.Conv2d(1, 512, 16, 16, bias=False)
        self.norm, self.proj = nn.LayerNorm(512), nn.Linear(512, 768)
        self.encoder = WavLMEncoder(WavLMConfig(num_buckets=320, max_bucket_distance=800, **settings))
        self.head = nn.Linear(768, num_classes)

    def forward(self, features):  # (B, 1, T, 128)
        tokens = self.proj(self.norm(self.patches(features).flatten(2).transpose(1, 2)))
        return self.head(self.encoder(tokens).last_hidden_state.mean(1))


class _AST(nn.Module):
    def __init__(self, num_classes: int, n_frames: int):
        from transformers import ASTConfig, ASTForAudioClassification

        super().__init__()
        config = ASTConfig(max_length=n_frames, num_labels=num_classes, attn_implementation="sdpa")
        self.body = ASTForAudioClassification(config)

    def forward(self, features):  # (B, T, 128)
        return self.body(features).logits


# Name → what PyTorch makes of (config, number of frames), and of our features `(B, n_mels, n_frames)` as its input.
Yardstick = tuple[Callable[..., nn.Module], Callable[[torch.Tensor], torch.Tensor]]
YARDSTICKS: dict[str, Yardstick] = {
    "htsat": (lambda config, _: _HTSAT(config.num_classes), lambda x: x.transpose(1, 2)[:, None]),
    "beats": (lambda config, _: _BEATs(config.num_classes), lambda x: x.transpose(1, 2)[:, None]),
    "ast": (lambda config, frames: _AST(config.num_classes, frames), lambda x: x.transpose(1, 2)),
    "efficientat": (
        lambda config, _: TorchEfficientAT(config).to(memory_format=torch.channels_last),  # its faster layout
        lambda x: x[:, None].contiguous(memory_format=torch.channels_last),
    ),
}
