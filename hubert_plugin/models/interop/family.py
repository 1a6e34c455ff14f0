"""Our model families with fairseq2: as its own, but any known checkpoint format is read, and read safely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, final

from fairseq2.assets import AssetCard
from fairseq2.composition.models import AdvancedModelFactory
from fairseq2.data_type import DataType
from fairseq2.gang import Gangs
from fairseq2.model_checkpoint import ModelCheckpointLoader, ModelCheckpointLoadOptions
from fairseq2.models.family import ModelFamily, StandardModelFamily
from fairseq2.runtime.dependency import DependencyContainer, DependencyLookup, DependencyResolver, wire_object
from fairseq2.runtime.lookup import Lookup
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from hubert_plugin.card_files import with_plain_path
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.interop.fit import encoder_of, fit_state_dict
from hubert_plugin.models.interop.keys import ENCODER_PREFIX, AnyConfig, encoder_config
from hubert_plugin.models.interop.recognize import Checkpoint, recognize
from hubert_plugin.models.interop.sources import open_checkpoint

ModelT = TypeVar("ModelT", bound=Module)

ConfigT = TypeVar("ConfigT")


@final
class OpenedCheckpoint(dict[str, Any]):
    """The entries of a file, and where they came from."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.content)

        self.checkpoint = checkpoint


def convert_state_dict(state_dict: dict[str, object], config: AnyConfig) -> dict[str, object]:
    """Convert the contents of a card's checkpoint, of any known format, to this package's names.

    :raises CheckpointError: It does not fit the model of ``config``.
    """
    own = ("encoder_frontend.", f"{ENCODER_PREFIX}encoder_frontend.")

    if any(key.startswith(own) for key in state_dict):
        return state_dict  # written by fairseq2 for this very model, perhaps a shard of it

    if isinstance(state_dict, OpenedCheckpoint):
        checkpoint = state_dict.checkpoint
    else:
        checkpoint = Checkpoint(Path("the checkpoint"), state_dict)

    recognised = recognize(checkpoint, encoder_config(config))

    if isinstance(config, HubertConfig) and not config.heads:
        recognised = encoder_of(recognised)

    return dict(fit_state_dict(recognised, config, "the configuration of the model"))


@final
class HubertCheckpointLoader(ModelCheckpointLoader):
    """Reads the checkpoints of our families: fairseq2's own by fairseq2, all others here."""

    def __init__(self, fairseq2_loader: ModelCheckpointLoader) -> None:
        self._fairseq2_loader = fairseq2_loader

    @override
    def lazy_load(
        self, path: Path, shard_dims: Mapping[str, int], options: ModelCheckpointLoadOptions | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        if (path / "pp_00").is_dir():
            yield from self._fairseq2_loader.lazy_load(path, shard_dims, options)

            return

        content: dict[str, object] = OpenedCheckpoint(open_checkpoint(path))

        if options is not None and options.state_dict_converter is not None:
            content = options.state_dict_converter(content)

        for key, value in content.items():
            if isinstance(value, Tensor):
                yield key, value

    @override
    def supports_path(self, path: Path) -> bool:
        return path.exists()


class HubertModelFamily(StandardModelFamily):  # type: ignore[misc] # final, but one step of many is to be another
    """fairseq2's, but checkpoints on this machine are found whatever is in their paths."""

    @override
    def load_model(
        self, card: AssetCard, gangs: Gangs, dtype: DataType, config: object | None, load_rank0_only: bool, mmap: bool
    ) -> Module:
        return super().load_model(with_plain_path(card, "checkpoint"), gangs, dtype, config, load_rank0_only, mmap)


def register_hubert_family(
    container: DependencyContainer,
    name: str,
    kls: type[ModelT],
    config_kls: type[ConfigT],
    advanced_factory: AdvancedModelFactory[ConfigT, ModelT],
    **appliers: Any,
) -> None:
    """Register a model family whose checkpoints are of any known format.

    :param appliers: ``compiler``, ``fsdp_applier`` and ``layerwise_ac_applier``.
    """

    def create_family(resolver: DependencyResolver) -> ModelFamily:
        def create_model(config: ConfigT) -> ModelT:
            return advanced_factory(resolver, config)

        configs: Lookup[ConfigT] = DependencyLookup(resolver, config_kls)

        return wire_object(
            resolver,
            HubertModelFamily,
            name=name,
            kls=kls,
            configs=configs,
            factory=create_model,
            supports_meta=True,
            restrict=True,
            checkpoint_loader=HubertCheckpointLoader(resolver.resolve(ModelCheckpointLoader)),
            state_dict_converter=convert_state_dict,
            shard_specs=None,
            **{"compiler": None, "fsdp_applier": None, "layerwise_ac_applier": None, **appliers},
        )

    container.register(ModelFamily, create_family, key=name)
