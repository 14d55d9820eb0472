"""`make bench`: times training steps, sampling and reading against the plain way and other packages.

All contenders of a row take turns in one process, so that ratios are reliable even where times are not.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

from models.sizes import CELL
from stages.benchmark import peers, plain
from stages.benchmark.clock import (
    Work,
    convolution_rate,
    flops,
    interleaved,
    machine,
    matrix_rate,
    measured_with,
    shown,
)
from stages.benchmark.subject import Subject
from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.compiled import compile_network, missing_compiler
from stages.engine.errors import UserError
from stages.engine.log import progress, say
from stages.engine.machine import versions
from stages.engine.report.page import Page
from stages.engine.run import page_folder

SAMPLED = 64  # pictures at once
PIXEL_PICTURES, PIXEL_STEPS = 16, 2  # for the slow peer on a CPU; its time is scaled to SAMPLED and DDIM_STEPS
DDIM_STEPS, GUIDANCE = 50, 3.0
FEW_STEPS = 10  # as good as 50 on i-CLEVR: .931 / .910, guided from .4 to .9 of t; 50 guided throughout: .908 / .907
DDIM = ("eval.sampler=ddim", "eval.eta=0.0", "eval.interval=[0.0,1.0]", f"eval.steps={DDIM_STEPS}")
THE_SAME = (f"eval.batch={SAMPLED}", f"eval.guidance={GUIDANCE}", "eval.classifier_guidance=0.0")  # in all samplings


@dataclass
class Row:
    """Holds one table row: the seconds per call of this project and of each contender, scaled to the same work.

    `arithmetic`: each contender's FLOP divided by ours, unless ours is 0.
    """

    what: str
    ours: list[float]
    others: dict[str, list[float]] = field(default_factory=dict)
    arithmetic: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(
        what: str, contenders: Mapping[str, Work], context: Context, scales: dict[str, float] | None = None
    ) -> "Row":
        """Measures a row. The first contender is ours."""
        times = interleaved(contenders, context)
        scale = {name: (scales or {}).get(name, 1.0) for name in contenders}
        scaled = {name: [s * scale[name] for s in seconds] for name, seconds in times.items()}
        work = {name: flops(work) * scale[name] for name, work in contenders.items()}
        ours, *others = scaled
        arithmetic = {name: work[name] / work[ours] for name in others if work[ours]}
        return Row(what, scaled[ours], {name: scaled[name] for name in others}, arithmetic)

    def cells(self) -> list[list]:
        """Returns a line per contender: what, ours, against, theirs, theirs over ours, their arithmetic over ours."""
        mine = statistics.median(self.ours)
        lines = []
        for name, seconds in self.others.items():
            theirs = statistics.median(seconds)
            work = f"{self.arithmetic[name]:.2f}" if name in self.arithmetic else None
            lines.append([self.what, shown(mine), name, shown(theirs), f"{theirs / mine:.2f}", work])
        return lines or [[self.what, shown(mine), None, None, None, None]]


def ldm_row(subject: Subject, context: Context, compiled: bool = False) -> Row:
    feed_forward = "ldm.network.expansion=4"  # as in diffusers' blocks
    config = subject.changed(feed_forward).config
    alike = (feed_forward, "ldm.network.pooled=false", "ldm.optimizer=adam")  # and the same recipe
    contenders = {"ours": subject.ldm_step(*alike, f"ldm.compile={str(compiled).lower()}")}
    if compiled:
        contenders["ours, not compiled"] = subject.ldm_step(*alike, "ldm.compile=false")
        if context.device.type == "cuda":
            contenders["ours, CUDA graphs"] = subject.ldm_step(*alike, "ldm.compile=cuda-graphs")
    if peers.available("diffusers"):
        latents = subject.vae.encode(plain.reading(subject.folder, 64, context.device)()[0]).detach()
        arguments = (context, config, subject.folder, subject.vae)
        contenders["diffusers' UNet, as in its example"] = peers.ldm_step(*arguments, None)
        contenders["diffusers' UNet, latents kept"] = peers.ldm_step(*arguments, latents)
    what = f"LDM training step, batch {config.ldm.batch}" + (", ours compiled" if compiled else "")
    return Row.of(what, contenders, context)


def vae_row(subject: Subject, context: Context) -> Row:
    config = subject.context.config
    contenders = {"ours": subject.vae_step("vae.optimizer=adam", "vae.label_weight=0.0", *PLAIN_VAE)}  # the same recipe
    contenders["the plain way"] = plain.vae_step(config, subject.folder, context.device)
    if peers.available("diffusers"):
        contenders["diffusers' VQModel, the plain way"] = peers.vae_step(config, subject.folder, context.device)
    return Row.of(f"stage-1 training step, batch {config.vae.batch}", contenders, context)


# the report's quantiser alone, as in the plain way
PLAIN_VAE = (
    *("vae.quantizer=codebook", "vae.decodes=codes", "vae.decoder_noise=0.0", "vae.unquantized=0.0"),
    *("vae.cell_weight=0.0", "vae.windows_until=0"),
)
# networks that need the label set only, as in the reports
REPORTS_GAN = ("gan.generator.entry=vector", "gan.critic.read=pooled")
PLAIN_GAN = ("gan.optimizer=adam", "gan.penalty_share=1.0")  # as in the plain way


def gan_row(subject: Subject, context: Context) -> Row:
    changes = ("gan.critic_steps=5", "gan.loss=wgan-gp", *REPORTS_GAN, *PLAIN_GAN)
    config = subject.changed(*changes).config
    contenders = {"ours": subject.gan_step(*changes)}
    arguments = (config, subject.folder, context.device, subject.vae)
    contenders["the plain way"] = plain.gan_step(*arguments)
    if config.gan.space == "latents":
        kept = subject.latents[: config.gan.batch], subject.dataset.conditions[: config.gan.batch].labels
        contenders["the plain way, latents kept"] = plain.gan_step(*arguments, kept)
    return Row.of(f"WGAN-GP step, 5 of the critic and 1, batch {config.gan.batch}", contenders, context)


def sampling_row(subject: Subject, context: Context) -> Row:
    sampler = subject.sampler()
    contenders: dict[str, Work] = {"ours": subject.sampling(sampler, SAMPLED, *DDIM, *THE_SAME)}
    scales = {}
    if peers.available("diffusers"):
        asked = subject.dataset.conditions[:SAMPLED]
        arguments = (context, sampler, subject.vae, asked, DDIM_STEPS, GUIDANCE)
        contenders["diffusers' DDIM loop, our network"] = peers.sampling(*arguments)
    if peers.available("denoising_diffusion_pytorch"):
        name, count, steps = "denoising-diffusion-pytorch, pixels, width 64, no guidance, float32", SAMPLED, DDIM_STEPS
        if context.device.type == "cpu":
            count, steps = PIXEL_PICTURES, PIXEL_STEPS
            name += f" (from {count} pictures, {steps} steps)"
        contenders[name] = peers.pixel_sampling(context.device, count, steps, 64, context.config.data.size)
        scales[name] = SAMPLED / count * DDIM_STEPS / steps
    return Row.of(f"{SAMPLED} pictures, DDIM {DDIM_STEPS}, guidance {GUIDANCE:g}", contenders, context, scales)


def interval(context: Context) -> tuple[str, str]:
    """Returns the configuration's interval of guidance, as an override and in words."""
    low, high = context.config.eval.interval
    return f"eval.interval=[{low},{high}]", f"guidance in {low:g} to {high:g} of t"


def compiled_sampling_row(subject: Subject, context: Context) -> Row:
    """Times what a user can have: our network compiled, guided only in the configuration's `eval.interval`."""
    sampler, compiled = subject.sampler(), subject.sampler()
    compile_network(compiled.network, context.device, True, constant=True)
    within, words = interval(context)
    contenders: dict[str, Work] = {
        "ours": subject.sampling(compiled, SAMPLED, *DDIM, *THE_SAME, within),
        "ours, not compiled": subject.sampling(sampler, SAMPLED, *DDIM, *THE_SAME, within),
        "ours, compiled, guidance throughout": subject.sampling(compiled, SAMPLED, *DDIM, *THE_SAME),
    }
    if context.device.type == "cuda":
        graphs = subject.sampler()
        compile_network(graphs.network, context.device, "cuda-graphs", constant=True)
        contenders["ours, CUDA graphs"] = subject.sampling(graphs, SAMPLED, *DDIM, *THE_SAME, within)
    if peers.available("diffusers"):
        arguments = (context, sampler, subject.vae, subject.dataset.conditions[:SAMPLED], DDIM_STEPS, GUIDANCE)
        contenders["diffusers' DDIM loop, our network, guidance throughout"] = peers.sampling(*arguments)
    return Row.of(f"{SAMPLED} pictures, DDIM {DDIM_STEPS}, compiled, {words}", contenders, context)


def few_steps_row(subject: Subject, context: Context) -> Row:
    sampler, (within, words) = subject.sampler(), interval(context)
    few = (*DDIM, *THE_SAME, f"eval.steps={FEW_STEPS}")
    contenders = {
        "ours": subject.sampling(sampler, SAMPLED, *few, within),
        f"our DDIM {FEW_STEPS}, guidance throughout": subject.sampling(sampler, SAMPLED, *few),
        f"our DDIM {DDIM_STEPS}, guidance throughout": subject.sampling(sampler, SAMPLED, *DDIM, *THE_SAME),
    }
    return Row.of(f"{SAMPLED} pictures, DDIM {FEW_STEPS}, {words}", contenders, context)


def reading_row(subject: Subject, context: Context) -> Row:
    batch = 64
    contenders = {"ours": subject.reading(batch)}
    contenders[f"DataLoader, {plain.WORKERS} workers"] = plain.reading(subject.folder, batch, context.device)
    return Row.of(
        f"{batch} pictures of {subject.dataset.size}x{subject.dataset.size} into the training loop", contenders, context
    )


ROWS: dict[str, Callable[[Subject, Context], Row]] = {
    "ldm": ldm_row,
    "ldm-compiled": partial(ldm_row, compiled=True),
    "vae": vae_row,
    "gan": gan_row,
    "sampling": sampling_row,
    "sampling-compiled": compiled_sampling_row,
    "few-steps": few_steps_row,
    "reading": reading_row,
}
COMPILED = ("ldm-compiled", "sampling-compiled")


def rates(subject: Subject, context: Context) -> dict[str, dict[str, float]]:
    """Measures each step's FLOP, seconds and FLOP/s, and the rate of bare convolutions of the same shapes."""
    s = subject.context.config
    network, size, cells = s.ldm.network, s.data.size, s.data.size // CELL
    of_ldm = [(s.ldm.batch, network.channels * m, cells >> i) for i, m in enumerate(network.multipliers)]
    forms = {"ldm": "false"} | ({} if missing_compiler(context.device) else {"ldm, compiled": "true"})
    found = {}
    for name, step, shapes in [
        *((name, subject.ldm_step(f"ldm.compile={form}"), of_ldm) for name, form in forms.items()),
        ("vae", subject.vae_step(), [(s.vae.batch, c, size // 2 >> i) for i, c in enumerate(s.vae.channels)]),
        ("gan", subject.gan_step(), [(s.gan.batch, s.gan.critic.channels[-1], cells)]),
    ]:
        step()  # k-means, first allocations, compilation
        work = flops(step)
        seconds = statistics.median(interleaved({"": step}, context)[""])
        bare = statistics.mean(convolution_rate(context, *shape) for shape in shapes)
        found[name] = {"flop": work, "seconds": seconds, "rate": work / seconds, "convolutions": bare}
    return found


def main(context: Context) -> None:
    wanted = context.arguments.only
    for package, name in (("diffusers", "diffusers"), ("denoising_diffusion_pytorch", "denoising-diffusion-pytorch")):
        if not peers.available(package):
            say(f"{name} is missing: its lines are left out; to install: `.venv/bin/python -m pip install {name}`")
    if compiler := missing_compiler(context.device):
        say(f"{compiler} is not installed: compiled networks are left out")
        wanted = [name for name in wanted if name not in COMPILED]
        if not wanted:
            raise UserError(f"--only names nothing that can run: {', '.join(COMPILED)} need {compiler}; install it")
    folder = page_folder(context, "bench")
    subject = Subject(context, folder / "work")
    about = machine(context)
    page = Page(
        f"{context.config.name}: how fast",
        f"{measured_with(about)}. Medians of calls in "
        f"turn in one process. The networks are the configuration's, untrained, on made-up pictures.",
    )
    head = ["what", "ours", "against", "takes", "times ours", "arithmetic, times ours"]
    rows: list[list] = []
    measured: list[dict] = []
    result: dict[str, object] = {"device": about, "versions": versions(), "rows": measured}
    page.add_table("Beside others", head, rows)
    for name in progress([name for name in wanted if name != "rates"], "bench"):
        row = ROWS[name](subject, context)
        rows += row.cells()
        measured.append(asdict(row))
        page.write(folder, result)  # what is measured so far
    if "rates" in wanted:
        of_steps, of_matrices = rates(subject, context), matrix_rate(context)
        result |= {"rates": of_steps, "matrix_rate": of_matrices}
        page.add_table(
            f"Arithmetic (matrix product 2048^3: {of_matrices / 1e9:.0f} GFLOP/s)",
            ["step", "GFLOP", "time", "GFLOP/s", "bare convolutions, GFLOP/s", "share"],
            [
                [n, f"{r['flop'] / 1e9:.1f}", shown(r["seconds"]), f"{r['rate'] / 1e9:.0f}",
                 f"{r['convolutions'] / 1e9:.0f}", f"{r['rate'] / r['convolutions']:.2f}"]
                for n, r in of_steps.items()
            ],
        )  # fmt: skip
    path = page.write(folder, result)
    say((folder / "report.md").read_text())
    print(path)


if __name__ == "__main__":
    run_command(COMMANDS["benchmark.bench"], main)
