"""From the `kind` in a record to its config and network. This is the one file that knows all models.

Nothing is imported before it is asked for, so that a deployment without torch can read what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from occ_core.errors import InvalidInput
from occ_core.models.config import CameraModelConfig, parse
from occ_core.models.earlier_names import with_todays_settings
from occ_core.models.easyocc.config import EasyOccConfig

if TYPE_CHECKING:
    from torch import nn

NANO = "easyocc-nano"
KINDS = (NANO, "easyocc", "occnerf", "selfocc", "occle")
ModelConfig = EasyOccConfig | CameraModelConfig


def config_type(kind: str) -> type[ModelConfig]:
    """Return the config class of a kind of model.

    Raises:
        InvalidInput: no such kind.
    """
    match kind:
        case "easyocc-nano":
            return EasyOccConfig
        case "easyocc":
            from occ_core.models.easyocc.volume_config import EasyOccVolumeConfig

            return EasyOccVolumeConfig
        case "occnerf":
            from occ_core.models.occnerf.config import OccNerfConfig

            return OccNerfConfig
        case "selfocc":
            from occ_core.models.selfocc.config import SelfOccConfig

            return SelfOccConfig
        case "occle":
            from occ_core.models.occle.config import OccleConfig

            return OccleConfig
    raise InvalidInput(f"model kind '{kind}' is not one of {', '.join(KINDS)}")


def parse_config(record: dict[str, Any]) -> ModelConfig:
    """Validate a config given as a plain dict; without `kind` it is EasyOcc nano's, as in the first checkpoints.

    Raises:
        InvalidInput: one line that names the first wrong field.
    """
    if not isinstance(record, dict):
        raise InvalidInput(f"model config must be a mapping of field to value, is a {type(record).__name__}")
    return parse(config_type(kind_of(record)), with_todays_settings(record))


def build_model(config: ModelConfig) -> nn.Module:
    """Build the untrained network of a config."""
    own: Any = config  # of the class that its kind says
    match kind_of(config):
        case "easyocc-nano":
            from occ_core.models.easyocc.model import EasyOcc, channels_last

            return channels_last(EasyOcc(own))
        case "easyocc":
            from occ_core.models.easyocc.volume import EasyOccVolume

            return EasyOccVolume(own)
        case "occnerf":
            from occ_core.models.occnerf.model import OccNerf

            return OccNerf(own)
        case "selfocc":
            from occ_core.models.selfocc.model import SelfOcc

            return SelfOcc(own)
        case "occle":
            from occ_core.models.occle.model import Occle

            return Occle(own)
    raise InvalidInput(f"model kind '{kind_of(config)}' is not one of {', '.join(KINDS)}")


def kind_of(config: ModelConfig | dict[str, Any]) -> str:
    """Return the kind of a config, or of a record of one."""
    return str(config.get("kind", NANO) if isinstance(config, dict) else getattr(config, "kind", NANO))
