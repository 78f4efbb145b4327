"""Parameters and composition: configuration, RAM layer, block, language model, checkpoints, counting."""

from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.count import CountRow, count, format_count, state_elements
from ramnet_np.model.network import RAMNet
from ramnet_np.model.presets import PRESETS, preset

__all__ = ["PRESETS", "CountRow", "RAMNet", "RAMNetConfig", "count", "format_count", "preset", "state_elements"]
