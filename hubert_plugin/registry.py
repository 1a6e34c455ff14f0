"""The interfaces that a plugin of ours can implement, and how to register an implementation under a name.

Thin over fairseq2's ``register_component``: a component has a name, a configuration dataclass and a factory. From YAML
it is addressed by a section with the two keys ``name`` and ``config``. Another package registers its own from its
``fairseq2.extension`` entry point; see CONTRIBUTING.md for a worked example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from fairseq2.recipe.component import ComponentManager, ComponentNotKnownError, _ComponentEntry, register_component
from fairseq2.recipe.config import SupportsStructure
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from hubert_plugin.config_check import ConfigSource, check_config_values
from hubert_plugin.errors import ConfigError

if TYPE_CHECKING:
    from fairseq2.metrics import MetricBag
    from fairseq2.recipe.base import RecipeContext

Features = NDArray[np.float32]
"""Frame-level features of one utterance. *Shape:* (M, D)."""

Waveform = NDArray[np.float32]
"""A mono waveform at 16 kHz in [-1, 1]. *Shape:* (n,)."""

Units = NDArray[np.int32]
"""Frame-level units of one utterance. *Shape:* (M,)."""


class FeatureSource(ABC):
    """Turns waveforms into the frame-level features that are clustered into units."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of features of a frame."""

    @property
    @abstractmethod
    def rate(self) -> int:
        """The number of frames per second: 50 or 100."""

    @abstractmethod
    def extract(self, waveforms: Sequence[Waveform]) -> list[Features]:
        """Return the features of each waveform, in order. *Shape of an item:* (M, D), float32."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return what distinguishes this source (kind, layer, checkpoint fingerprint, …) for provenance records."""


@dataclass(frozen=True)
class LabelSetSpec:
    """What a model, a unit model and a label store must agree on."""

    name: str
    """The name of the label set; also the file extension of its labels (``train.<name>``)."""

    size: int
    """The number of units."""

    rate: int = 50
    """Labels per second: 50 or 100."""


class UnitModel(ABC):
    """Maps frame-level features to units; yields one or more label sets."""

    @property
    @abstractmethod
    def label_sets(self) -> Sequence[LabelSetSpec]: ...

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, object]:
        """Where the model came from: feature source, seed, number of frames, fingerprint, …"""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A short digest of the parameters; equal models have equal fingerprints."""

    @abstractmethod
    def assign(self, features: Features) -> list[Units]:
        """Return, for each label set, the units of the frames of ``features`` (*Shape:* (M, D))."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the model to ``path`` atomically."""


class TargetHead(Module, ABC):
    """Scores every unit of one label set for some frames."""

    label_set: str
    """The name of the label set that this head predicts."""

    size: int
    """The number of units."""

    layer: int
    """The 1-based encoder layer whose output this head reads (DESIGN, decision 6)."""

    weight: float
    """The weight of this head in the loss."""

    @abstractmethod
    def forward(self, seqs: Tensor) -> Tensor:
        """Return the logits of all units.

        :param seqs: Encoder outputs of the frames to predict. *Shape:* (S, M), S frames of model dimension M.
        :returns: Logits in float32. *Shape:* (S, C). Column c scores unit c.
        """


class Criterion(ABC):
    """Computes the loss of a batch and updates metrics."""

    @abstractmethod
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None: ...

    @abstractmethod
    def __call__(self, batch: Any, metric_bag: MetricBag) -> tuple[Tensor, int | None]:
        """Return the *summed* loss and the number of frames by which the trainer divides the gradients."""

    def process_metric_values(self, values: dict[str, object]) -> None:  # noqa: B027 - optional hook
        """Derive further values from the synchronised ones before they are published."""


class HubertTask(ABC):
    """Opens and checks the data, says the label sets and their sizes, makes the readers."""

    @abstractmethod
    def label_sets(self) -> Sequence[LabelSetSpec]:
        """Return the label sets, checked against manifest and dictionary; made on the way where the config says so."""

    @abstractmethod
    def create_readers(self, *, normalize_audio: bool = False, num_accumulate: int = 1) -> Any:
        """Return the readers: an object with ``train``, a ``DataReader`` with ``pop_wait_seconds``, and ``valid``, a
        ``DataReader`` or ``None``.

        :param normalize_audio: Whether the model expects normalised waveforms.
        :param num_accumulate: The number of batches of an update.
        """


class ComponentFactory(Protocol):
    def __call__(self, resolver: DependencyResolver, config: Any) -> Any: ...


class TargetHeadFactory(Protocol):
    """Makes a head from the model configuration, the head's own configuration and what all heads share."""

    def __call__(self, resolver: DependencyResolver, config: Any) -> Any: ...


def register_feature_source(container: DependencyContainer, name: str, config_kls: type, factory: Any) -> None:
    """Register a :class:`FeatureSource` under ``name``. ``factory(resolver, config) -> FeatureSource``."""
    register_component(container, FeatureSource, name, config_kls, factory)  # type: ignore[type-abstract]


def register_unit_model(container: DependencyContainer, name: str, config_kls: type, factory: Any) -> None:
    """Register a fitter of unit models under ``name``. ``factory(resolver, config) -> units.fit.UnitModelFitter``."""
    register_component(container, UnitModel, name, config_kls, factory)  # type: ignore[type-abstract]


def register_target_head(container: DependencyContainer, name: str, config_kls: type, factory: Any) -> None:
    """Register a kind of :class:`TargetHead` under ``name``.

    ``factory(resolver, config)`` returns a builder ``(HubertConfig, HubertHeadConfig, shared_proj) -> TargetHead``.
    """
    register_component(container, TargetHead, name, config_kls, factory)


def register_criterion(container: DependencyContainer, name: str, config_kls: type, factory: Any) -> None:
    """Register a criterion under ``name``. ``factory(resolver, config)`` returns a callable
    ``(module, model) -> Criterion``: what is called (the model or its data-parallel wrapper), and the model itself."""
    register_component(container, Criterion, name, config_kls, factory)  # type: ignore[type-abstract]


def register_task(container: DependencyContainer, name: str, config_kls: type, factory: Any) -> None:
    """Register a task under ``name``. ``factory(resolver, config)`` returns a callable
    ``(RecipeContext, HubertDatasetSection, seed) -> HubertTask``."""
    register_component(container, HubertTask, name, config_kls, factory)  # type: ignore[type-abstract]


T = TypeVar("T")


def create_component(resolver: DependencyResolver, kls: type[T], name: str, config: object) -> T:
    """Create the component ``name`` of interface ``kls`` from its structured configuration."""
    return resolver.resolve(ComponentManager).create_component(kls, name, config)


def known_names(resolver: DependencyResolver, kls: type) -> list[str]:
    """Return the names under which components of interface ``kls`` are registered, sorted."""
    keys = resolver.iter_keys(_ComponentEntry)

    return sorted(k[1] for k in keys if isinstance(k, tuple) and k[0] is kls)


@dataclass(kw_only=True)
class ComponentSection(SupportsStructure):
    """A configuration section that names a component and holds its own configuration."""

    component_kls: ClassVar[type]

    name: str
    """The name under which the component is registered."""

    config: object = field(default_factory=dict)
    """The component's own configuration."""

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        manager = resolver.resolve(ComponentManager)

        config = without_leftovers(resolver, self.component_kls, self.name, self.config)

        check_component_values(resolver, self.component_kls, self.name, config)

        try:
            self.config = manager.structure_component_config(self.component_kls, self.name, config)
        except ComponentNotKnownError:
            raise unknown_name_error(
                self.component_kls.__name__, self.name, known_names(resolver, self.component_kls)
            ) from None


def without_leftovers(resolver: DependencyResolver, kls: type, name: str, config: object) -> object:
    """Return ``config`` without the keys that only other components of the interface ``kls`` have.

    fairseq2 merges what a YAML file says into the recipe's defaults. Where the file names another component than the
    default, the default's own keys are still there, and would be refused as unknown. Keys that nobody has stay, to be
    refused: they are misspelt.
    """
    entry = resolver.maybe_resolve(_ComponentEntry, key=(kls, name))

    if entry is None or not isinstance(config, Mapping):
        return config

    keys = resolver.iter_keys(_ComponentEntry)

    others = [resolver.resolve(_ComponentEntry, key=k) for k in keys if isinstance(k, tuple) and k[0] is kls]

    known_elsewhere = {name for other in others for name in _field_names(other.config_kls)}

    own = _field_names(entry.config_kls)

    return {key: value for key, value in config.items() if key in own or key not in known_elsewhere}


def check_component_values(resolver: DependencyResolver, kls: type, name: str, config: object) -> None:
    """Check the values of the component ``name`` of interface ``kls`` that fairseq2 would take for others: it makes 2.5
    units 2. The recipe's own components are checked before, with all other keys; those chosen instead only here.

    :raises ConfigError: Names all of them.
    """
    entry = resolver.maybe_resolve(_ComponentEntry, key=(kls, name))

    if entry is not None and config is None and is_dataclass(entry.config_kls):
        raise ConfigError(f"the configuration of '{name}' must hold keys and values, but is null.")

    if entry is not None and isinstance(config, Mapping):
        check_config_values(entry.config_kls, ConfigSource(f"the configuration of '{name}'", config))


def prepare_section(section: Any, resolver: DependencyResolver, kls: type) -> None:
    """Make ready a section of fairseq2's that names a component, before it is structured.

    :param section: Has ``name`` and ``config``.
    :param kls: The interface of its components.
    :raises ConfigError: No component has the name; tells the nearest.
    """
    names = known_names(resolver, kls)

    if section.name not in names:
        raise unknown_name_error(kls.__name__, section.name, names)

    section.config = without_leftovers(resolver, kls, section.name, section.config)

    check_component_values(resolver, kls, section.name, section.config)


def _field_names(kls: type) -> set[str]:
    # fairseq2 has components without a configuration.
    return {f.name for f in fields(kls)} if is_dataclass(kls) else set()


@dataclass(kw_only=True)
class FeatureSourceSection(ComponentSection):
    """Selects a feature source."""

    component_kls: ClassVar[type] = FeatureSource


@dataclass(kw_only=True)
class UnitModelSection(ComponentSection):
    """Selects how a unit model is fitted."""

    component_kls: ClassVar[type] = UnitModel


@dataclass(kw_only=True)
class CriterionSection(ComponentSection):
    """Selects a criterion."""

    component_kls: ClassVar[type] = Criterion


@dataclass(kw_only=True)
class TaskSection(ComponentSection):
    """Selects a task."""

    component_kls: ClassVar[type] = HubertTask


def unknown_name_error(kind: str, name: str, known: Sequence[str]) -> ConfigError:
    """Return the error that names the nearest known names."""
    near = get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""

    return ConfigError(f"'{name}' is not a known {kind}.{hint} Known names: {', '.join(known) or 'none'}.")


if TYPE_CHECKING:
    _ = RecipeContext
