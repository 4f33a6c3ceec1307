"""The benchmark scripts: their arithmetic and words, and that they run, on tiny networks and few images."""

from __future__ import annotations

import importlib
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from velodrome.config import override
from velodrome.data.imageset import Splits
from velodrome.errors import ConfigError, DeviceError
from velodrome.job import Job, prepare
from velodrome.recipes import resnet9

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    contestants = importlib.import_module("contestants")
    contestants_torch = importlib.import_module("contestants_torch")
    libraries = importlib.import_module("contestants_libraries")
    profile_step = importlib.import_module("profile_step")
    profile_layers = importlib.import_module("profile_layers")
    tables = importlib.import_module("dated_tables")
    throughput = importlib.import_module("throughput")

SPEEDS = {
    "velodrome": [96.0, 95.0, 99.0],
    "bare": [100.0, 100.0, 100.0],
    "plain (2 workers)": [24.0, 25.0, 22.0],
    "plain (0 workers)": [32.0, 38.0, 33.0],
}
BATCH = 16
TINY = ["--data", "shapes", "--limit-train", "64", "--limit-test", "20", "--batch-size", "16", "--width", "2"]


class Enough:
    """A watch that has enough after so many steps in a row."""

    def __init__(self, steps: int) -> None:
        self.steps, self.begun, self.epochs = steps, 0, 0

    def begin(self) -> None:
        self.begun += 1

    def step_done(self) -> bool:
        self.steps -= 1
        return self.steps == 0

    def epoch_done(self, network: torch.nn.Module) -> None:
        self.epochs += 1


class EveryWeight(Enough):
    """A watch that never has enough, and keeps the weights after each epoch."""

    def __init__(self) -> None:
        super().__init__(0)
        self.weights: list[torch.Tensor] = []

    def epoch_done(self, network: torch.nn.Module) -> None:
        self.weights.append(torch.cat([weight.detach().flatten() for weight in network.parameters()]))


@pytest.fixture
def job(coloured_images) -> Job:
    """Three full batches an epoch and one of two images."""
    images = coloured_images(3 * BATCH + 2, 16, 16)
    config = resnet9(data="shapes", batch_size=BATCH, width=2, lr=0.1, device="cpu", precision="fp32")
    return prepare(config, Splits("made", images, None, images))


def test_ratios_are_taken_within_each_round():
    assert tables.ratios(SPEEDS, "velodrome", "bare") == [0.96, 0.95, 0.99]


def test_spread():
    assert tables.spread([0.96, 0.95, 0.99]) == "0.960 (0.950 to 0.990, n = 3)"
    assert tables.spread([2.5], " GiB") == "2.500 GiB (n = 1)"


@pytest.mark.parametrize(
    ("values", "or_more", "reached"),
    [
        ([0.1, 0.5, 0.9], True, True),
        ([0.1, 0.4, 0.9], True, False),
        ([0.5], False, False),
        ([0.4], False, True),
    ],
)
def test_a_claim_is_about_the_median(values, or_more, reached):
    assert tables.Claim("a", values, 0.5, or_more).reached is reached


def test_the_faster_plain_loop_counts():
    words = [str(claim) for claim in throughput.claims(throughput.Figures([3.2], [0.3, 0.6, 0.7], SPEEDS))]
    assert words == [
        "velodrome / bare: 0.960 (0.950 to 0.990, n = 3); wanted at least 0.92: reached",
        "velodrome / plain (0 workers), the faster plain loop: 3.000 (2.500 to 3.000, n = 3); "
        "wanted at least 2.5: reached",
        "peak memory of 4 steps and an evaluation, in a new process: 3.200 GiB (n = 1); "
        "wanted less than 4: reached",
        "images ready in a new process, after imports, files in the page cache: "
        "0.600 s (0.300 to 0.700, n = 3); wanted less than 0.5: missed",
    ]


def test_report():
    figures = throughput.Figures(
        speeds={"velodrome": [90.0, 80.0], "bare": [100.0, 100.0], "plain": [20.0] * 2}
    )
    text = throughput.report(figures, {"CPU": "slow"}, "python it", setting="All of it.", load=0.2)
    assert text.splitlines()[1:] == [
        "",
        "`python it`",
        "",
        "All of it.",
        "",
        "| machine |  |",
        "| --- | --- |",
        "| CPU | slow |",
        "",
        "| images/s | median | min | max | n |",
        "| --- | --- | --- | --- | --- |",
        "| velodrome | 85.0 | 80.0 | 90.0 | 2 |",
        "| bare | 100.0 | 100.0 | 100.0 | 2 |",
        "| plain | 20.0 | 20.0 | 20.0 | 2 |",
        "",
        "| ratio within each round | median | min | max | n |",
        "| --- | --- | --- | --- | --- |",
        "| velodrome / bare | 0.850 | 0.800 | 0.900 | 2 |",
        "| velodrome / plain | 4.250 | 4.000 | 4.500 | 2 |",
        "",
        "- velodrome / bare: 0.850 (0.800 to 0.900, n = 2); wanted at least 0.92: missed",
        "- velodrome / plain, the faster plain loop: 4.250 (4.000 to 4.500, n = 2); "
        "wanted at least 2.5: reached",
    ]


def test_a_busy_machine_is_named():
    def busy(load: float) -> bool:
        return "was busy" in "".join(tables.heading("it", {}, "python it", "All.", load))

    assert busy(0.6)
    assert not busy(0.4)


def test_reports_are_appended(tmp_path, capsys):
    tables.print_and_append("one\n", tmp_path / "table.md")
    tables.print_and_append("two\n", tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() == "one\n\ntwo\n"
    assert capsys.readouterr().out == "one\n\ntwo\n\n"


def test_a_block_is_warmed_up_and_no_longer_than_asked_for():
    steps = itertools.count()
    contestant = contestants.Contestant("counting", lambda watch: contestants.follow(steps, watch))
    assert throughput.time_block(contestant, 2, 3, torch.device("cpu")) >= 0
    assert next(steps) == 5


def test_blocks_of_velodrome_lie_within_an_epoch(job):
    contestant = contestants.velodrome(job, 2)
    done = []
    for _ in range(3):
        contestant.train(Enough(2))
        done.append((job.state.epoch, job.state.meter.done))
    assert done == [(0, 2), (1, 2), (2, 2)]


def test_bare_trains_the_same_network_on_one_batch(job):
    steps = contestants.fixed_batch_steps(job)
    losses = [loss.item() for loss in itertools.islice(steps, 30)]
    assert losses[-1] < losses[0]
    assert job.state.step == 0


def test_bare_ends_when_the_watch_has_enough(job):
    watch = Enough(3)
    contestants.bare(job).train(watch)
    assert (watch.begun, watch.steps) == (1, 0)


def test_a_block_must_fit_into_an_epoch(job):
    throughput.check_fits(3, job)
    with pytest.raises(ConfigError, match="4 steps in a row of 16 images must fit into an epoch"):
        throughput.check_fits(4, job)


def test_cutout_is_one_whole_square():
    for _ in range(20):
        hole = contestants_torch.CutOut(8)(torch.ones(3, 12, 10)) == 0
        assert hole.sum(dim=(1, 2)).tolist() == [64, 64, 64]
        assert hole[0].any(1).sum() == hole[0].any(0).sum() == 8


def test_peak_memory_is_that_of_a_new_process():
    assert 0.1 < throughput.in_new_process("memory", TINY) < 4


def test_without_torchvision_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    assert throughput.main(TINY) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "pip install torch torchvision" in message


@pytest.mark.parametrize("library", ["fastai", "lightning"])
def test_without_a_library_it_says_what_to_install(library, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    libraries.check_installed(["plain", "informed"])
    with pytest.raises(DeviceError, match=f"{library} cannot be imported") as raised:
        libraries.check_installed([f"{library}-bf16"])
    assert "--only" in raised.value.remedy


@pytest.mark.parametrize("script", [throughput, profile_step, profile_layers])
def test_bad_input_is_one_line(script, capsys):
    assert script.main(["--width", "0"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "width" in told.err


class TestWithTorchvision:
    @pytest.fixture(autouse=True)
    def torchvision(self):
        # Beside a CPU build of torch, the ordinary wheel of torchvision raises RuntimeError at import.
        pytest.importorskip("torchvision.transforms", exc_type=(ImportError, RuntimeError))

    def test_plain_images_are_augmented_and_normalised(self, job):
        images = contestants_torch.pil_images(job)
        image, label = images[4]
        assert (image.shape, image.dtype, label) == ((3, 16, 16), torch.float32, 1)
        assert len(images) == 3 * BATCH + 2
        assert (image == 0).all(0).sum() >= 64  # the cutout
        assert not torch.equal(image, images[4][0])

    @pytest.mark.filterwarnings("ignore")  # what the library does not mind
    def test_fastai_augments_and_normalises(self, job):
        pytest.importorskip("fastai")
        loaders = libraries.fastai_loaders(job, 0)
        images, labels = loaders.train.one_batch()
        assert images.shape == (BATCH, 3, 16, 16)
        assert len(loaders.train) == 4  # the last batch of two images is kept
        assert abs(images.mean()) < 0.5
        assert images.mean((2, 3)).argmax(1).tolist() == labels.tolist()  # the brightest channel

    def test_the_loop_tells_loss_and_accuracy(self, job):
        network, loader = contestants.new_network(job), contestants_torch.torch_loader(job, 0)
        optimizer, scheduler = contestants_torch.sgd_in_one_cycle(network, job, len(loader))
        loop = contestants_torch.notebook_loop(network, loader, optimizer, scheduler, job.device)
        means = list(loop)
        assert len(means) == 4
        assert all(loss > 0 and 0 <= accuracy <= 1 for loss, accuracy in means)

    @pytest.mark.filterwarnings("ignore")  # fork, and what the libraries do not mind
    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("rival", libraries.RIVALS)
    def test_rivals_train_and_leave_no_workers(self, job, workers, rival):
        if rival.partition("-")[0] in ("fastai", "lightning"):
            pytest.importorskip(rival.partition("-")[0])
        job = replace(job, config=override(job.config, {"epochs": 2}))
        watched = EveryWeight()
        contestant = libraries.RIVALS[rival](job, workers)
        contestant.train(Enough(2))
        contestant.train(watched)
        assert not torch.multiprocessing.active_children()
        assert contestant.name == f"{rival} ({workers} workers)"
        assert (watched.begun, watched.steps) == (1, -8)  # 2 epochs of 3 full batches and one of two images
        first, second = watched.weights
        assert first.isfinite().all()
        assert not torch.equal(first, second)

    @pytest.mark.filterwarnings("ignore")  # what the libraries do not mind
    @pytest.mark.parametrize("rival", libraries.RIVALS)
    def test_rivals_compute_in_the_precision_and_layout_of_their_name(self, job, rival):
        if rival.partition("-")[0] in ("fastai", "lightning"):
            pytest.importorskip(rival.partition("-")[0])
        found = set()

        def look(module, inputs, output):
            if isinstance(module, torch.nn.Conv2d):
                found.add((output.dtype, output.is_contiguous(memory_format=torch.channels_last)))

        with torch.nn.modules.module.register_module_forward_hook(look):
            libraries.RIVALS[rival](job, 0).train(Enough(1))
        half = rival.endswith("bf16") or rival == "informed"
        assert found == {(torch.bfloat16, True) if half else (torch.float32, False)}

    def test_script(self, capsys, tmp_path):
        few = ["--rounds", "2", "--steps", "1", "--warmup", "1", "--workers", "0", "--parts", "speed"]
        assert throughput.main([*TINY, *few, "--only", "plain", "--output", str(tmp_path / "table.md")]) == 0
        text = (tmp_path / "table.md").read_text()
        assert "velodrome / plain (0 workers), the faster plain loop: " in text
        assert "for orientation only" in text
        assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::mkldnn_convolution", "aten::_convolution", "aten::conv2d"], "convolution"),
        (["aten::convolution_backward"], "convolution"),
        (["autograd::engine::evaluate_function: ConvolutionBackward0"], "convolution"),
        (["NativeBatchNormBackward0"], "batch norm"),
        (["aten::empty", "aten::empty_like", "aten::native_batch_norm"], "batch norm"),
        (["aten::fill_", "aten::zero_", "aten::max_pool2d_with_indices_backward"], "pooling"),
        (["autograd::engine::evaluate_function: MaxPool2DWithIndicesBackward0"], "pooling"),
        (["aten::mm", "MmBackward0"], "linear layer"),
        (["aten::threshold_backward", "ReluBackward0"], "pointwise and loss"),
        (["aten::_log_softmax", "aten::cross_entropy_loss"], "pointwise and loss"),
        (["AddBackward0"], "pointwise and loss"),
        (["aten::copy_", "aten::_to_copy", "aten::to", "aten::conv2d"], "copies and layout"),
        (["aten::empty_strided", "aten::_to_copy"], "copies and layout"),
        (["ToCopyBackward0"], "copies and layout"),
        (["aten::_fused_sgd_"], "optimizer"),
        (["aten::add_", "Optimizer.step#SGD.step"], "optimizer"),
        (["Optimizer.zero_grad#SGD.zero_grad"], "optimizer"),
        (["aten::copy_", "aten::index", profile_step.BATCH], "augmentation"),
        ([profile_step.BATCH], "augmentation"),
        (["aten::resolve_conj"], "other torch"),
        (["aten::detach", "torch::autograd::AccumulateGrad"], "other torch"),
    ],
)
def test_kind_of(names, kind):
    assert profile_step.kind_of(names) == kind


def test_no_time_is_counted_twice():
    images, network = torch.rand(8, 3, 16, 16), torch.nn.Conv2d(3, 4, 3)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        network(images).relu().sum().backward()
    events = profiler.events()
    outermost_s = sum(event.cpu_time_total for event in events if event.cpu_parent is None) / 1e6
    by_kind = profile_step.seconds_by_kind(events, on_gpu=False)
    assert sum(by_kind.values()) == pytest.approx(outermost_s, rel=1e-6)


def test_shares_add_up(job):
    profiled = profile_step.profile_steps(job, warmup=1, steps=1)
    assert {"convolution", "batch norm", "pooling", "augmentation", "optimizer"} <= set(profiled.by_kind)
    assert all(seconds > 0 for seconds in profiled.by_kind.values())
    assert sum(profiled.by_kind.values()) <= profiled.wall_s
    _, _, *rows = (line.strip("| ").split(" | ") for line in profiled.table(1) if line.startswith("|"))
    *shares, whole = (float(share.rstrip("%")) for _, _, share in rows)
    assert sum(shares) == pytest.approx(whole, abs=0.1 * len(shares))
    assert whole == 100


@pytest.mark.parametrize("recipe", ["speed94", "resnet9", "dawnbench"])
def test_layers_and_the_rest_are_the_whole_step(recipe, capsys):
    words = [
        "--data",
        "shapes",
        "--limit-train",
        "64",
        "--batch-size",
        "32",
        "--width",
        "2",
        "--recipe",
        recipe,
    ]
    assert profile_layers.main([*words, "--device", "cpu", "--steps", "2", "--warmup", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {
        cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines) if len(cells) == 7
    }
    convs = {name for name in rows if "conv" in name}
    assert len(convs) == {"speed94": 7, "resnet9": 8, "dawnbench": 8}[recipe]
    assert all("-" not in rows[name] for name in convs)
    frozen = {name for name in rows if name.endswith("whiten")}
    assert len(frozen) == (recipe != "resnet9")
    assert all(rows[name][1] == "-" for name in frozen)
    shares = [
        float(cells[2].rstrip("%")) for name, cells in rows.items() if name not in ("layer", "---", "a step")
    ]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
