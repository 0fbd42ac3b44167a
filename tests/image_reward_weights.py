"""Small random weights in the layout of `ImageReward.pt`."""

import torch

from segdream_cli.evaluate.image_reward import HEAD_WIDTH

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "car", "##s", "bus", ",")
SIZE, PATCH = 48, 16
SEEN, READ = 2 * HEAD_WIDTH, HEAD_WIDTH
"""Widths of the vision and the text network."""
HEAD = {0: (READ, 24), 2: (24, 12), 4: (12, 8), 6: (8, 6), 7: (6, 1)}
"""Position in the release's sequence -> inputs and outputs of the head's layers."""


def published(seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint with the names of `ImageReward.pt`, and two weights that scores do not need."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int, mean: float = 0, std: float = 0.3) -> None:
        state[name] = mean + std * torch.randn(shape, generator=generator)

    def linear(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width, mean=1)
        add(f"{name}.bias", width)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    add(f"{eye}.cls_token", 1, 1, SEEN)
    add(f"{eye}.pos_embed", 1, 1 + (SIZE // PATCH) ** 2, SEEN)
    add(f"{eye}.patch_embed.proj.weight", SEEN, 3, PATCH, PATCH)
    add(f"{eye}.patch_embed.proj.bias", SEEN)
    norm(f"{eye}.norm", SEEN)
    for i in range(2):
        norm(f"{eye}.blocks.{i}.norm1", SEEN)
        norm(f"{eye}.blocks.{i}.norm2", SEEN)
        linear(f"{eye}.blocks.{i}.attn.qkv", SEEN, 3 * SEEN)
        linear(f"{eye}.blocks.{i}.attn.proj", SEEN, SEEN)
        linear(f"{eye}.blocks.{i}.mlp.fc1", SEEN, 4 * SEEN)
        linear(f"{eye}.blocks.{i}.mlp.fc2", 4 * SEEN, SEEN)
    state[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    add(f"{text}.embeddings.word_embeddings.weight", len(WORDS) + 2, READ)
    add(f"{text}.embeddings.position_embeddings.weight", 40, READ)
    norm(f"{text}.embeddings.LayerNorm", READ)
    for i in range(3):
        layer = f"{text}.encoder.layer.{i}"
        for kind, source in (("attention", READ), ("crossattention", SEEN)):
            linear(f"{layer}.{kind}.self.query", READ, READ)
            linear(f"{layer}.{kind}.self.key", source, READ)
            linear(f"{layer}.{kind}.self.value", source, READ)
            linear(f"{layer}.{kind}.output.dense", READ, READ)
            norm(f"{layer}.{kind}.output.LayerNorm", READ)
        linear(f"{layer}.intermediate.dense", READ, 4 * READ)
        linear(f"{layer}.output.dense", 4 * READ, READ)
        norm(f"{layer}.output.LayerNorm", READ)
    linear("blip.vision_proj", SEEN, 32)
    linear("blip.text_proj", READ, 32)
    for i, (inputs, outputs) in HEAD.items():
        linear(f"mlp.layers.{i}", inputs, outputs)
    return state
