"""Every setting of a run and its default, once. Frozen dataclasses; the text under a field is its
help.

``read_when(field, values)`` marks a setting that is read only when a sibling has one of these
values. A section that can be one of several dataclasses is described in ``config.sections``. The
type of a number says what range it must be in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from llm_jax.config.data import DataConfig
from llm_jax.config.model import ModelConfig
from llm_jax.config.optimizer import OptimizerConfig
from llm_jax.ranges import Count, Natural, NotNegative, Range, Seed, ShareBelowOne

Devices = Annotated[int, Range(-1, 2**31 - 1)]
Seconds = Annotated[float, Range(2)]
History = Annotated[int, Range(2, 2**31 - 1)]

REMAT_NAMES = ("query", "key", "value", "attention_out", "mlp_hidden", "mlp_out")


@dataclass(frozen=True)
class ExecutionConfig:
    """How the model is run; changes speed and memory, never the parameter tree."""

    attention: Literal["auto", "xla", "dot_product", "blockwise", "cudnn", "splash"] = "auto"
    """Attention backend. One that cannot honour a mask of the run raises. auto: splash on TPU and
    cudnn on a GPU where they honour every mask of the model, else xla. blockwise never holds [T,
    S], on any device.
    """
    context: Literal["ring", "all_to_all"] = "ring"
    """How attention goes over mesh.context: keys and values round a ring of devices (blockwise, any
    number of heads), or each device all positions of some heads (heads must divide; any backend).
    """
    shard_sequence: bool = True
    """Between the layers' products, activations are also split by position over mesh.tensor."""
    layers: Literal["auto", "scan", "unroll"] = "auto"
    """Run the layers as one compiled loop or written out. auto: unroll on CPU up to 12 layers, else
    scan.
    """
    remat: str = "none"
    """What the backward pass recomputes: none, full, dots (keep matrix products and attention's
    output), or names:a,b to keep only those of query key value attention_out mlp_hidden mlp_out, or
    offload:a,b to keep these in the host's memory until then.
    """
    microbatches: Natural = 0
    """Parts of the batch (of each accumulation step) that follow one another through mesh.pipeline,
    a multiple of it; 0 takes one for each stage. More leave stages idle for less of the time.
    """
    pipeline_repeats: Count = 1
    """Times that each microbatch goes round mesh.pipeline, each time through fewer layers: less
    idle time, more sending.
    """
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations; parameters stay float32. auto: bfloat16 on TPU and GPU,
    float32 on CPU.
    """
    loss_chunk: Natural = 0
    """Tokens of the vocabulary whose logits exist at once in the loss. 0 picks (about half at
    most).
    """


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 on one axis takes all that are left."""

    data: Devices = -1
    """Copies of the model, each with its share of the batch."""
    fsdp: Devices = 1
    """Shares of the batch over which parameters and optimizer state are also split."""
    tensor: Devices = 1
    """Shares of heads, MLP and vocabulary."""
    context: Devices = 1
    """Shares of each row's positions, through attention too; parameters are also split over it."""
    expert: Devices = 1
    """Shares of the experts, and of the batch, whose tokens travel to their experts; other
    parameters are also split over it.
    """
    pipeline: Devices = 1
    """Shares of the layers: stages that work on different microbatches at once. Embeddings are also
    split over it.
    """


@dataclass(frozen=True)
class _SpikeConfig:
    """What counts as a spike of the loss or the gradient norm."""

    deviations: NotNegative = 6.0
    """Standard deviations above the mean of the last steps from which on a loss or gradient norm is
    a spike.
    """
    window: History = 128
    """Steps of that history; half of them, and 20 where it is as long, must be there before a step
    can be a spike.
    """


@dataclass(frozen=True)
class SkipSpikesConfig(_SpikeConfig):
    """The update of a spike is left out."""

    kind: ClassVar[str] = "skip"


@dataclass(frozen=True)
class RewindSpikesConfig(_SpikeConfig):
    """At a spike the run goes back to the newest checkpoint, and leaves out the batches from there
    to the spike's.
    """

    kind: ClassVar[str] = "rewind"


@dataclass(frozen=True)
class HostsConfig:
    """How the hosts of a run watch each other."""

    check_every: Count = 100
    """Steps between comparisons of what the hosts of a run have computed."""
    silent: Seconds = 15.0
    """Seconds without a sign of life after which a host counts as gone and the others end."""
    stuck: Seconds = 300.0
    """Seconds that one host may keep the others waiting in one place before the run ends; a warning
    names it after 10.
    """


@dataclass(frozen=True)
class TrainConfig:
    """The loop around the step."""

    steps: Count = 1000
    """Optimizer steps in all."""
    out: str = ""
    """Folder of the run; empty is runs/NAME."""
    seed: Seed = 0
    """Initial parameters and dropout."""
    start: str = ""
    """Folder of a run or a converted model whose parameters the run begins with; empty begins at
    random. Only the pooler and the classes may differ from it, and begin at random then.
    """
    trainable: tuple[str, ...] = ("*",)
    """Parameters that are trained, all by default: patterns of their paths as in fnmatch, such as
    layers/attention/*, or role:NAME. The others are frozen: without gradient, optimizer state or
    weight decay.
    """
    accumulation: Count = 1
    """Pieces the batch is worked through in; changes memory, not the result."""
    z_loss: NotNegative = 0.0
    """Weight of the squared log-normaliser in the loss."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of each target's weight that is spread evenly over the vocabulary; what is reported as
    loss is without it.
    """
    log_every: Count = 1
    """Steps between lines of metrics.jsonl."""
    eval_every: Natural = 0
    """Steps between evaluations on the validation split; 0 is only after the last step."""
    eval_batches: Natural = 0
    """Batches of each evaluation; 0 is the whole split."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; one is always written at the end."""
    keep: Count = 3
    """Newest checkpoints kept."""
    allow_changed: tuple[str, ...] = ()
    """Settings, by their dotted keys, that may differ from those of the checkpoint a run goes on
    from.
    """
    peak_tflops: NotNegative = 0.0
    """Peak of one device in TFLOP/s that MFU is stated against; 0 takes the table, or measures a
    matmul.
    """
    profile_steps: tuple[Count, ...] = ()
    """First step, and number of steps, whose profile is written into the folder profile of the run;
    empty is none.
    """
    spike: SkipSpikesConfig | RewindSpikesConfig | None = None
    """At a spike of the loss or the gradient norm: nothing; leave its update out; or go back to the
    newest checkpoint and leave out the batches from there to the spike's. Chosen when a run starts:
    its history is part of the optimizer's state.
    """
    hosts: HostsConfig = HostsConfig()


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "run"
    """Name of the run and of its folder."""
    model: ModelConfig = ModelConfig()
    execution: ExecutionConfig = ExecutionConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
