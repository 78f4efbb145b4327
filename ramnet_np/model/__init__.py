"""Parameters and composition: configuration, RAM layer, block, language model, checkpoints, counting."""

from ramnet_np.model.config import PRESETS, RAMNetConfig, preset
from ramnet_np.model.count import CountRow, count, format_count, state_elements
from ramnet_np.model.network import RAMNet

__all__ = ["PRESETS", "CountRow", "RAMNet", "RAMNetConfig", "count", "format_count", "preset", "state_elements"]
