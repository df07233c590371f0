"""The one place where settings have their defaults. Every config starts from `base()` and changes what differs.

Twelve experiments, {htsat, beats, efficientat, ast} × {lora, full, scratch}, share one recipe.

Any value can be set on the command line: `--config.train.learning_rate=3e-4`. Presets, after a colon:

    :smoke   built-in synthesizer, a small network, under two minutes on two CPU cores
    :small   a small data set (about 1,500 clips) on a CPU: folder given by --config.data.path
    :full    SOUSA from the Hub (`zkeown/sousa`)
"""

from ml_collections import ConfigDict

from sousa_jax.errors import InputError

PRESETS = ("smoke", "small", "full")
VARIANTS = {"htsat": "htsat", "beats": "beats", "efficientat": "mn10", "ast": "ast"}
LEARNING_RATES = {"lora": 1e-4, "full": 1e-5, "scratch": 5e-5}  # peaks

# Small relatives of the released networks, for `:smoke`.
SMOKE = {
    "htsat": dict(spec_size=64, embed_dim=16, depths=(2, 2), heads=(2, 4), window_size=4),
    "beats": dict(patch_features=32, features=64, hidden_features=128, n_layers=2, n_heads=2, conv_kernel=16),
    "efficientat": dict(norm_momentum=0.9, grouped_init=True),
    "ast": dict(width=64, depth=2, n_heads=2, mlp_width=128),
    "strokes": dict(width=32, dilations=(1, 2, 4), rhythm_widths=(16, 32)),
}


def experiment(model: str, strategy: str, preset: str = "") -> ConfigDict:
    """One of the twelve, with a preset or none."""
    config = base(model, VARIANTS[model], strategy)
    if preset == "smoke":
        smoke(config)
    elif preset == "full":
        config.data.path = "zkeown/sousa"
        config.data.by_performance = True
    elif preset == "small":
        small(config)
    elif preset:
        raise unknown_preset(preset)
    return config


def base(model: str, variant: str, strategy: str) -> ConfigDict:
    """The shared recipe of all experiments."""
    config = ConfigDict()
    config.seed = 42
    config.strategy = strategy
    config.init_from = ""  # a folder that ports.convert wrote, or a run's folder; empty: random weights
    config.allow_random_init = False  # strategies lora, full and head refuse random weights otherwise
    config.deterministic = False  # GPUs add in a fixed order: slower, the same bits each time

    config.devices = ConfigDict()  # all are used; batches are split among them
    config.devices.model = 1  # this many share one copy of the parameters, and a batch's rows
    config.devices.fully_sharded = False  # all share one copy of parameters and moments, and split the rows

    config.model = ConfigDict()
    config.model.name = model
    config.model.variant = variant
    config.model.window_s = 5.0  # what the network hears at a time, seconds
    # How such a window meets a network that was released for longer ones. fill: as it is, or over and over, never
    # stretched in time nor padded, so that a rhythm stays what it is; official: as the released code does it.
    config.model.length = "fill"
    config.model.hop_ms = 0  # between spectrogram frames; 0: as the variant was released
    config.model.n_mels = 0  # mel bands; 0: as the variant was released
    config.model.head = "strokes" if model == "strokes" else "plain"  # strokes: is taught when and how hard they fall
    config.model.strokes_per_second = 200  # frames, of head `strokes`; model strokes has its spectrogram's instead
    config.model.settings = ConfigDict(
        {} if model == "strokes" else {"dropout": 0.1}
    )  # fields of the model's own config
    if model == "efficientat":
        config.model.settings.update(norm_momentum=0.99, grouped_init=False)

    config.strokes = ConfigDict()  # only for head `strokes`
    config.strokes.stage = "joint" if model == "strokes" else ""  # hearing, rhythm or joint; see docs/strokes.md
    config.strokes.rhythm_from = ""  # folder of a run of stage rhythm, whose rhythm head this one starts with
    config.strokes.weight = 1.0  # of the strokes' loss beside the name's
    config.strokes.errors = ""  # stage rhythm: a file of measured hearing errors; empty: strokes are heard as they fall

    config.teachers = ()  # folders of runs whose answers are learnt beside what is true; see sousa_jax/distill.py
    config.distill = ConfigDict()
    config.distill.alpha = 0.7  # how much the teachers' answers count; the rest is what is true
    config.distill.temperature = 4.0  # at which both are compared
    config.distill.mean = "probabilities"  # of several teachers; or logits
    config.distill.weights = ()  # of each teacher; empty: all alike
    config.distill.embedding = 0.0  # how much it counts beside them that the same clips seem alike
    config.distill.strokes = 0.0  # 0 … 1: how far the strokes that teachers hear take the place of those that fell
    # Answers are kept in this folder: of `data.crops` places of each clip, neither stretched nor mixed; empty: nowhere.
    config.distill.cache = ""
    config.distill.cache_mb = 1024  # a cache that would be larger is refused
    config.distill.baseline = ""  # folder of the same student trained without teachers, to compare the results with

    config.data = ConfigDict()
    config.data.path = "synth"  # `synth`, a folder, or a Hub id
    config.data.revision = ""  # of a Hub data set; empty: its newest. The resolved one goes into config.json
    config.data.streaming = False  # read on and on instead of at random; for sets that do not fit on disk
    config.data.by_performance = False  # draw performances, then one of their audio variants
    config.data.speed = 0.0  # training clips are played up to this much faster or slower, pitch and strokes with them
    config.data.crops = 0  # evenly spaced places of a clip where training cuts its windows; 0: anywhere
    config.data.exclude = ()  # e.g. ("soundfont=Marching_Snare",): such clips are tested, but not trained on
    config.data.cache_dir = ""  # decoded, resampled clips are kept here, memory-mapped; empty: decode every time
    config.data.max_bad_fraction = 0.01  # of a split's clips may be unreadable; above it the run stops
    config.data.workers = 2  # decoding threads
    config.data.prefetch = 4  # batches made ahead

    config.data.synth = ConfigDict()  # the built-in synthesizer
    # Train, validation, test. Training never hears a clip twice: the first number is what an epoch is.
    config.data.synth.clips = (4000, 400, 400)
    config.data.synth.dialect = "sousa"  # sousa: as the data set plays; notated: as the PAS sheet is written; mixed
    config.data.synth.num_cycles = 4  # of the rudiment in a clip; 0: endless, a clip begins anywhere
    config.data.synth.clip_s = 10.0  # length of an endless clip that is evaluated, seconds
    config.data.synth.bandwidth_hz = 0.0  # nothing sounds above it; 0: no limit
    config.data.synth.drums = ""  # a file of drums learnt from recordings, for training; see docs/synthesizer.md
    config.data.synth.drums_share = 0.7  # how often training hears one of them, not a random drum
    config.data.synth.share = 0.0  # of each training batch when `path` is something else

    config.train = ConfigDict()
    config.train.epochs = 50
    config.train.batch_size = 16
    config.train.accumulate = 2  # batches whose gradients are averaged before an update
    config.train.learning_rate = LEARNING_RATES[strategy]  # peak
    config.train.warmup_fraction = 0.1  # of all updates, linear; then cosine to zero
    config.train.weight_decay = 0.01  # AdamW; not on biases and norms
    config.train.gradient_norm = 1.0  # clipped to this
    config.train.label_smoothing = 0.1
    # strategy full: the head learns from the start, the upper half of the blocks and then everything after these
    # fractions of all updates; each layer below the head learns this much slower than the one above.
    config.train.unfreeze = (0.0, 0.0)
    config.train.layer_decay = 1.0
    config.train.head = r"(head|strokes|rhythm)\..*"  # paths that lora and head train beside adapters, a regex
    config.train.patience = 10  # epochs without a better validation score until the run stops
    config.train.compute_dtype = "float32"  # or bfloat16; parameters and statistics stay float32
    config.train.ema = 0.0  # decay of the running average of the weights that is evaluated and kept; 0: none
    config.train.remat = False  # gradient checkpointing: keeps only what lies between blocks, computes the rest again
    config.train.checkpoint_every_steps = 200  # besides the end of each epoch
    config.train.log_every_steps = 20

    config.lora = ConfigDict()  # strategy lora: adapters beside the frozen kernels of these layers
    config.lora.targets = r".*\.(attention\.(query|key|value|output)|mlp\.(hidden|output))"
    config.lora.rank = 2
    config.lora.alpha = 4.0  # adapters count alpha / rank
    config.lora.dropout = 0.1
    if model == "efficientat":  # it has neither, but pointwise convolutions; of its head only the class layer is new
        config.lora.targets = r"blocks\.\d+\.(expand|project)"
        config.train.head = r"(head\.output|pyramid|strokes|rhythm)\..*"

    config.augment = ConfigDict()  # on the device, inside the step
    config.augment.noise_snr_db = ()  # e.g. (20.0, 50.0): coloured noise that much below each clip, in dB
    config.augment.tempo_stretch = 0.1  # up to ± this, pitch unchanged
    config.augment.gain_db = 6.0  # up to ± this
    config.augment.equalizer_db = 0.0  # of each point of a random curve over frequency up to ± this
    config.augment.mel_jitter = True  # the frontend's mel edges, as the official training draws them
    config.augment.mixup_alpha = 0.2  # Beta(α, α), labels too; 0 turns it off
    config.augment.freq_masks = 2
    config.augment.freq_mask_bins = 20  # widest
    config.augment.time_masks = 2
    config.augment.time_mask_frames = 30  # widest

    config.eval = ConfigDict()
    config.eval.batch_size = 32

    config.tracking = ConfigDict()
    config.tracking.wandb = "auto"  # auto: online if WANDB_API_KEY is set, else offline; or online, offline, disabled
    config.tracking.wandb_project = "sousa-rudiment-classification"
    config.tracking.tensorboard = True
    return config


def smoke(config: ConfigDict) -> None:
    """Shrinks any experiment so that the whole path runs in under two minutes on two CPU cores, from random weights."""
    config.data.path = "synth"
    config.data.synth.clips = (320, 80, 80)
    config.model.window_s = 2.5
    config.model.settings.update(SMOKE[config.model.name])
    if config.model.name == "efficientat":
        config.model.variant = "mn01"
    elif config.model.name == "htsat":
        config.model.n_mels = 16
    config.allow_random_init = True
    config.train.epochs = 2
    config.train.accumulate = 1
    config.train.learning_rate = 3e-3
    config.tracking.wandb = "disabled"


def small(config: ConfigDict) -> None:
    """About 1,500 clips and minutes on a CPU. Only EfficientAT was tuned for it, the others need an accelerator."""
    config.train.epochs = 10
    if config.model.name == "efficientat":
        # Half the mel bands, which rhythm does not need, buy twice the epochs.
        config.model.variant = "mn04"
        config.model.n_mels = 64
        config.model.settings.update({"norm_momentum": 0.95, "grouped_init": True})
        config.train.batch_size = 32
        config.train.accumulate = 1
        config.train.learning_rate = {"scratch": 1.5e-3, "full": 1e-4, "lora": 5e-4}[config.strategy]
        config.train.epochs = 90 if config.strategy == "scratch" else 45
        config.train.patience = config.train.epochs
        config.augment.freq_masks = 1
        config.augment.freq_mask_bins = 8
        config.augment.time_masks = 0  # they would hide strokes


def unknown_preset(preset: str) -> InputError:
    return InputError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}, or none")
