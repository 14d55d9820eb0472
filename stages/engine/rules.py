"""Rules that involve several keys of a configuration: each is refused in one line before anything runs."""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from data.sizes import SIZE
from models.choices import DIFFUSION, EVERY_TIMESTEP, MODELS, PLACED_CRITIC_CONDITIONS
from models.sizes import ATTENDED, CELL
from stages.engine.errors import UserError
from stages.engine.schema import Config, Ddpm, Eval, Gan, Ldm, Network, flatten

# a data folder's other files, and a report's key besides the sets' names
OTHER_FILES = ("train", "validation", "objects", "places", "turns", "render", "held_out")
SECTIONS = {"ddpm": "configs/ddpm-multiply-add.yaml", "onestep": "configs/onestep.yaml"}  # which have one, for example

PLACING = {  # model -> the overrides with which it takes places
    "ldm": "ldm.network.places=true",
    "onestep": "ldm.network.places=true",
    "gan": "gan.generator.entry=map gan.generator.condition=modulation",
    "ddpm": "ddpm.places=true",
}


def plain(name: str) -> bool:
    """Returns True for a name that is a single folder, not a path."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None


def check(config: Config, where: Path) -> None:
    """Checks the rules that involve several keys."""
    for key, value in flatten(config).items():
        if isinstance(value, str) and not value.isprintable():
            raise UserError(f"{where}: {key} {value!r} holds a character that cannot be printed; choose another name")
    _check_training(config, where)
    _check_vae(config, where)
    _check_size(config, where)
    _check_lists(config, where)
    _check_eval(config.eval, "guide" in config.uses, where)
    for stage in DIFFUSION:
        if section := getattr(config, stage):
            _check_denoising(section, stage, config, where)
    _check_gan(config.gan, config.data.size, where)
    _check_network(config.ldm.network, "ldm.network", config.data.size, where)
    _check_patches(config, where)


def _check_training(config: Config, where: Path) -> None:
    """Checks what all stages that train have, and which exports are reused."""
    trained = ("evaluator", "reader", "vae", *MODELS)
    for stage in trained:
        section = getattr(config, stage)
        if section and section.warmup >= section.steps:
            raise UserError(f"{where}: {stage}.warmup ({section.warmup}) must be below {stage}.steps ({section.steps})")
        if section and section.batch % section.accumulate:
            raise UserError(
                f"{where}: {stage}.batch ({section.batch}) must be a multiple of {stage}.accumulate "
                f"({section.accumulate}); change one of them"
            )
    for stage, experiment in config.uses.items():
        if stage not in (*trained, "guide") or not plain(experiment):
            raise UserError(f"{where}: uses.{stage}={experiment}: write a stage and an experiment, such as vae: iclevr")


def _check_vae(config: Config, where: Path) -> None:
    vae = config.vae
    if vae.windows_until and vae.label_weight:
        raise UserError(
            f"{where}: vae.label_weight needs whole pictures, vae.windows_until trains on parts of them; set one to 0, "
            f"or use vae.cell_weight instead"
        )
    if vae.unquantized == 1 and vae.decodes == "codes":
        raise UserError(
            f"{where}: vae.unquantized=1 teaches the decoder no codes, which vae.decodes=codes gives it; lower it, or "
            f"set vae.decodes=latents"
        )
    if vae.fsq.levels % 2 == 0:
        raise UserError(f"{where}: vae.fsq.levels ({vae.fsq.levels}) must be odd so that 0 is a level; set 7")
    if vae.quantizer == "fsq" and vae.fsq.levels**vae.latent_channels >= 2**63:
        raise UserError(
            f"{where}: vae.fsq.levels ({vae.fsq.levels}) with vae.latent_channels "
            f"({vae.latent_channels}) give more codes than 64 bits can count; lower one of them"
        )
    if vae.quantizer == "residual" and vae.residual.codes**vae.residual.quantizers >= 2**63:
        raise UserError(
            f"{where}: vae.residual.codes ({vae.residual.codes}) to the power of vae.residual.quantizers "
            f"({vae.residual.quantizers}) are more codes than 64 bits can count; lower one of them"
        )
    starts: dict[str, int] = {vae.quantizer: vae.quantized_from}
    if vae.discriminator.weight > 0:
        starts["discriminator"] = vae.discriminator.start
    for key, start in starts.items():
        if start >= vae.steps:
            raise UserError(f"{where}: vae.{key}.start ({start}) must be below vae.steps ({vae.steps})")


def _check_lists(config: Config, where: Path) -> None:
    """Checks what the configuration lists: no entry twice, each of something that there is."""
    for name in config.data.conditions:
        if not plain(name) or name in OTHER_FILES:
            raise UserError(
                f"{where}: data.conditions lists {name!r}, which names no file of label sets; write it without folder "
                f"and without .json, such as test"
            )
    for model in config.models:
        if getattr(config, model) is None:
            raise UserError(
                f"{where}: models lists {model}, and there is no section {model}; see configs/{model}*.yaml"
            )
    lists = {"models": config.models, "eval.seeds": config.eval.seeds, "data.conditions": config.data.conditions}
    for key, values in lists.items():
        if len(set(values)) < len(values):
            raise UserError(f"{where}: {key} {[*values]} repeats an entry; give each once")


def _check_eval(settings: Eval, has_guide: bool, where: Path) -> None:
    if not settings.seeds:
        raise UserError(f"{where}: eval.seeds is empty; five seeds are usual: [0, 1, 2, 3, 4]")
    low, high = settings.interval
    if not 0 <= low < high <= 1:
        raise UserError(f"{where}: eval.interval [{low}, {high}] must be two rising numbers in 0..1")
    if settings.classifier_guidance and not has_guide:
        raise UserError(
            f"{where}: eval.classifier_guidance needs a guide that is not the judge: uses.guide=EXPERIMENT, whose "
            f"evaluator was trained from another seed"
        )


def _check_patches(config: Config, where: Path) -> None:
    """Checks the pixel DDPM on patches."""
    if config.ddpm and config.ddpm.network == "patches":
        _check_network(config.ddpm.unet, "ddpm.unet", config.data.size, where)
        if config.ddpm.places:
            raise UserError(f"{where}: ddpm.places needs network=multiply-add; for patches set ddpm.unet.places=true")
        if config.eval.clip is not None and config.eval.sampler == "ancestral" and "ddpm" in config.models:
            raise UserError(
                f"{where}: eval.clip ({config.eval.clip:g}) bounds x_0, which with ddpm.network=patches is measured in "
                f"the pixels' deviations; set eval.clip=null"
            )


def _check_size(config: Config, where: Path) -> None:
    """Checks what depends on the size of the pictures."""
    size, vae = config.data.size, config.vae
    if len(vae.channels) != CELL.bit_length() - 1:
        sides = " -> ".join(str(size >> level) for level in range(CELL.bit_length()))
        raise UserError(f"{where}: vae.channels needs three numbers, one per resolution ({sides} pixels)")
    if config.data.folder is None and config.render.size is not None and config.render.size < size:
        raise UserError(
            f"{where}: render.size ({config.render.size}) is below data.size ({size}), so that scenes would be "
            f"enlarged; set render.size=null, which draws at data.size"
        )
    if size != SIZE and config.evaluator.checkpoint and "evaluator" not in config.uses:
        raise UserError(
            f"{where}: the lab's evaluator, evaluator.checkpoint, judges {SIZE}x{SIZE} pictures, not data.size={size}; "
            f"set evaluator.checkpoint=null to train one"
        )
    side = size // 2 if vae.windows_until > vae.discriminator.start else size  # windows are half as wide
    if vae.discriminator.weight > 0 and side >> vae.discriminator.layers < 3:
        raise UserError(
            f"{where}: vae.discriminator.layers ({vae.discriminator.layers}) leave nothing of the {side}x{side} "
            f"pixels that it sees; lower it"
        )


def _check_gan(gan: Gan, size: int, where: Path) -> None:
    """Checks the keys of the GAN's two networks together, so that neither network ignores one."""
    generator, critic = gan.generator, gan.critic
    if generator.entry == "map" and generator.condition != "modulation":
        raise UserError(
            f"{where}: gan.generator.entry=map modulates its norms by noise and labels; set "
            f"gan.generator.condition=modulation, not {generator.condition}"
        )
    if critic.read == "places" and critic.condition not in PLACED_CRITIC_CONDITIONS:
        raise UserError(
            f"{where}: gan.critic.read=places does not support gan.critic.condition={critic.condition}; set one of "
            f"{', '.join(PLACED_CRITIC_CONDITIONS)}"
        )
    if critic.read == "places" and critic.pool != "sum":
        raise UserError(
            f"{where}: gan.critic.read=places sums its features over the map; set gan.critic.pool=sum, not "
            f"{critic.pool}"
        )
    if gan.attention and gan.takes_places:
        raise UserError(
            f"{where}: gan.attention=true needs gan.generator.entry=vector and gan.critic.read=pooled; set both, or "
            f"gan.attention=false"
        )
    if gan.attention and gan.side(size) < ATTENDED:
        raise UserError(
            f"{where}: gan.attention=true attends at {ATTENDED}x{ATTENDED}, and the largest map is "
            f"{gan.side(size)}x{gan.side(size)} (gan.space, gan.stem, data.size); set gan.attention=false"
        )
    if gan.auxiliary_schedule != "constant" and not critic.has_label_loss:
        raise UserError(
            f"{where}: gan.auxiliary_schedule={gan.auxiliary_schedule} needs a critic with a label loss; set "
            f"gan.critic.condition=projection+auxiliary, or the schedule to constant"
        )
    if critic.has_label_loss and gan.auxiliary == 0:
        raise UserError(
            f"{where}: gan.auxiliary=0 leaves gan.critic.condition={critic.condition} without its label loss; set "
            f"gan.auxiliary above 0, or gan.critic.condition=projection"
        )
    size = min(size, SIZE)  # in larger pictures the width at the smallest map serves what they have more
    for key, (side, needed) in gan.levels(size).items():
        widths, full = getattr(gan, key).channels, gan.side(size)
        if len(widths) < needed:
            raise UserError(
                f"{where}: gan.{key}.channels {list(widths)} are too few: give at least {needed}, one per resolution "
                f"between {side}x{side} and the {full}x{full} that gan.space and gan.stem set"
            )


def _check_network(network: Network, key: str, size: int, where: Path) -> None:
    """Checks the keys of a cross-attention UNet together. `key` is the name of its section."""
    side = size // CELL
    if (network.heads is None) == (network.head_width is None):
        raise UserError(f"{where}: give one of {key}.heads and {key}.head_width, and null for the other")
    if network.condition == "vector" and network.wants_layouts:
        raise UserError(
            f"{where}: {key}.condition=vector is one token for the whole set, without order or places; set "
            f"{key}.condition=tokens, or order=false, places=false and turns=false"
        )
    if network.turns and not network.places:
        raise UserError(f"{where}: {key}.turns=true needs {key}.places=true; set both or neither")
    widths = [network.channels * m for m in network.multipliers]
    if network.channels % 2 or len(widths) > side.bit_length():
        most = f"at most {side.bit_length()} multipliers ({side}x{side} to 1x1)"
        raise UserError(f"{where}: {key}.channels must be even, with {most}")
    if any(w % network.heads_at(w) for w in widths):
        raise UserError(f"{where}: the heads must divide every width of {key} ({widths}); change head_width or heads")
    if network.head_width is not None and any(w % network.head_width for w in widths if w > network.head_width):
        raise UserError(f"{where}: {key}.head_width ({network.head_width}) must divide every width ({widths})")


def _check_denoising(section: Ldm | Ddpm, stage: str, config: Config, where: Path) -> None:
    """Checks a diffusion model's keys together and, if it is evaluated, with the keys of `eval`."""
    if section.zero_terminal_snr and section.prediction in ("noise", "mean"):
        raise UserError(
            f"{where}: {stage}.zero_terminal_snr needs {stage}.prediction=v or x0, not {section.prediction}"
        )
    if section.takes_estimate and section.prediction in ("noise", "mean"):
        raise UserError(
            f"{where}: {stage}.{section.takes_estimate} needs {stage}.prediction=v or x0: near t=T the x_0 that "
            f"follows from a predicted {section.prediction} has no bound"
        )
    if section.zero_terminal_snr and (section.min_snr or section.log_snr) and not section.bound:
        raise UserError(
            f"{where}: {stage}.zero_terminal_snr ends in pure noise, which min_snr and log_snr give no weight; set "
            f"{stage}.min_snr=null {stage}.log_snr=null"
        )
    if section.apart and section.takes_places:
        raise UserError(
            f"{where}: {stage}.apart={section.apart:g} is for a network that is told no places; set {stage}.apart=0.0 "
            f"and eval.apart={section.apart:g}, which chooses such places when pictures are drawn"
        )
    if section.bound and section.log_snr:
        raise UserError(f"{where}: {stage}.bound and {stage}.log_snr are both loss weights; give one of them")
    if section.compile == "cuda-graphs" and section.accumulate > 1:
        raise UserError(
            f"{where}: {stage}.compile=cuda-graphs overwrites the gradient before, so that "
            f"{stage}.accumulate ({section.accumulate}) cannot add them; set {stage}.compile=true"
        )
    if stage in config.models:
        check_sampling(section, stage, config.eval, where)


def check_sampling(section: Ldm | Ddpm, stage: str, how: Eval, where: Path | str) -> None:
    """Checks that a diffusion model can be sampled so. Raises UserError."""
    if how.sampler not in EVERY_TIMESTEP and how.steps > section.timesteps:
        raise UserError(f"{where}: eval.steps ({how.steps}) exceeds {stage}.timesteps ({section.timesteps})")
    if section.label_dropout == 0 and how.guidance != 1:
        raise UserError(
            f"{where}: guidance {how.guidance:g} needs {stage}.label_dropout above 0, such as 0.1; set "
            f"eval.guidance=1.0"
        )


def refuse_asked_places(labels: str, model: str) -> None:
    """Raises UserError for labels that say where objects are, asked of a model that takes no places."""
    raise UserError(
        f"labels {labels!r}: this {model} was trained without places; leave them out, or train one with "
        f"{PLACING[model]}"
    )


def ignored(config: Config) -> list[str]:
    """Returns the keys whose value has no effect with the other settings, each with its reason, in words."""
    how, found = config.eval, []
    if config.evaluator.checkpoint and "evaluator" in config.uses:
        found.append("evaluator.checkpoint has no effect: uses.evaluator names another judge")
    if how.eta > 0 and how.sampler != "ddim":
        found.append(f"eval.eta={how.eta:g} has no effect: eval.sampler={how.sampler} takes none")
    if how.clip is not None and how.sampler not in EVERY_TIMESTEP:
        found.append(f"eval.clip={how.clip:g} has no effect: eval.sampler={how.sampler} takes none")
    if how.spacing != Eval().spacing and how.sampler in EVERY_TIMESTEP:
        found.append(f"eval.spacing={how.spacing} has no effect: eval.sampler={how.sampler} visits every timestep")
    if how.interval != Eval().interval and how.guidance == 1:
        found.append(f"eval.interval={[*how.interval]} has no effect: eval.guidance=1 means no guidance")
    if how.apart > 0 and how.places == "unknown":
        found.append(f"eval.apart={how.apart:g} has no effect: eval.places=unknown chooses no places")
    for stage in DIFFUSION:
        section = getattr(config, stage)
        if stage in config.models and section.prediction == "mean" and how.sampler not in EVERY_TIMESTEP:
            found.append(
                f"{stage}.prediction=mean with eval.sampler={how.sampler} amplifies errors; set eval.sampler=ancestral"
            )
    used = {"wgan-gp": ("penalty", "penalty_share"), "r3gan": ("gamma", "penalty_share"), "wgan": ("weight_clip",)}
    for key in sorted({key for keys in used.values() for key in keys} - {*used.get(config.gan.loss, ())}):
        value = getattr(config.gan, key)
        if value != Gan.model_fields[key].default:
            shown = [*value] if isinstance(value, tuple) else value
            found.append(f"gan.{key}={shown} has no effect: gan.loss={config.gan.loss}")
    if config.gan.stem != 1 and config.gan.on_latents:
        found.append(f"gan.stem={config.gan.stem} has no effect: gan.space=latents")
    for name, section, key, reason in _unread(config):
        value = getattr(section, key)
        if value not in (type(section).model_fields[key].default, None):
            found.append(f"{name}.{key}={value} has no effect: {reason}")
    return found


def _unread(config: Config) -> Iterator[tuple[str, BaseModel, str, str]]:
    """Yields keys that another key leaves without a reader: section's name, section, key and reason."""
    generator, critic, ddpm, onestep = config.gan.generator, config.gan.critic, config.ddpm, config.onestep
    if not critic.has_label_loss:
        yield "gan", config.gan, "auxiliary", f"gan.critic.condition={critic.condition}"
    if generator.entry != "map":
        yield "gan.generator", generator, "object_noise", f"gan.generator.entry={generator.entry}"
    for stage in DIFFUSION:
        section: Ldm | Ddpm | None = getattr(config, stage)
        if section and (section.bound or section.log_snr):
            yield stage, section, "min_snr", f"{stage}.{'bound' if section.bound else 'log_snr'} weighs instead"
        if section and not section.takes_places:
            yield stage, section, "place_dropout", f"{stage} takes no places"
    if ddpm and ddpm.network == "patches":
        yield from (("ddpm", ddpm, key, "ddpm.network=patches") for key in ("width", "paths", "stem"))
    elif ddpm:
        yield "ddpm", ddpm, "bottleneck", f"ddpm.network={ddpm.network}"
    if onestep and onestep.critic.weight == 0:
        for key in type(onestep.critic).model_fields.keys() - {"weight"}:
            yield "onestep.critic", onestep.critic, key, "onestep.critic.weight=0"


def refuse_missing_section(config: Config, model: str, where: str) -> None:
    """Raises UserError if the configuration has no section for a model."""
    if getattr(config, model) is None:
        raise UserError(f"{where} has no section {model}; {SECTIONS[model]} has one")


def refuse_undistillable(how: Eval, prediction: str | None) -> None:
    """Raises UserError if latents do not follow from the noise, or one call of an LDM cannot predict them.

    `prediction`: what the LDM predicts, None where it is not known yet.
    """
    if how.sampler == "ancestral" or how.eta > 0:
        raise UserError(
            f"onestep learns what the LDM makes of noise, but eval.sampler={how.sampler} eval.eta={how.eta:g} draws "
            f"more noise on the way; set eval.sampler=ddim eval.eta=0.0"
        )
    if prediction not in ("v", "x0", None):
        raise UserError(
            f"onestep starts from a network that predicts {prediction}, from which x_0 does not follow at the last "
            f"timestep; train the LDM with ldm.prediction=v"
        )
