"""The command line: parsing, precedence, errors and exit codes, in this process; no training."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from velodrome.cli import main
from velodrome.errors import EXIT_BAD_INPUT, EXIT_DONE


def printed_config(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["train", *words, "--print-config"]) == EXIT_DONE
    values = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(values, dict)
    return values


def test_help_is_fast_and_does_not_import_torch() -> None:
    code = "import sys; from velodrome.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
        assert "velodrome train --data shapes" in done.stdout
    assert min(times) < 0.5


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["summary", "-h"], ["--version"], []])
def test_asking_for_help_is_no_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == EXIT_DONE
    assert "velodrome" in capsys.readouterr().out


def test_the_recipe_follows_the_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert printed_config(capsys, "--data", "shapes")["recipe"] == "quick"
    assert printed_config(capsys)["recipe"] == "speed94"
    assert printed_config(capsys, "resnet9", "--data", "shapes")["recipe"] == "resnet9"
    (tmp_path / "c.yaml").write_text("data: shapes\n")
    assert printed_config(capsys, "--config", str(tmp_path / "c.yaml"))["recipe"] == "quick"


def test_flags_win_over_the_file_and_the_file_over_the_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 7\nlr: 1e-2\n")
    config = printed_config(capsys, "resnet9", "--config", str(path), "--epochs", "9")
    assert (config["epochs"], config["lr"], config["batch_size"]) == (9, 0.01, 512)


@pytest.mark.parametrize(
    ("words", "replanned"), [(("--time-budget", "none"), "30:50"), (("--steps", "70"), None)]
)
def test_other_steps_are_another_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], replanned: str | None
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("steps: 60\nreplanned: '30:50'\n")
    assert printed_config(capsys, "quick", "--config", str(path), *words)["replanned"] == replanned


def test_printed_config_is_valid_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = printed_config(capsys, "quick", "--epochs", "3", "--no-flip", "--peak", "5/24")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(first))
    assert printed_config(capsys, "--config", str(path)) == first


BAD = [
    (["train", "--replanned", "30:50"], "replanned is 30:50, but steps is None, and must not be below"),
    (["train", "--replanned", "50:30", "--steps", "60"], "replanned is '50:30', but must be STEP:STEPS"),
    (["trian"], "'trian' is not a command. Did you mean train?"),
    (["train", "resnet"], "'resnet' is not a recipe. Did you mean resnet9?"),
    (["train", "--epoch", "3"], "--epoch is not an option of velodrome train. Did you mean --epochs?"),
    (["train", "--epochs=0"], "--epochs is '0', but must be auto or a whole number at least 1."),
    (["train", "--epochs", "-3"], "--epochs is '-3'"),
    (["train", "--batch-size", "0"], "--batch-size is '0'"),
    (["train", "--lr", "-1"], "--lr is '-1'"),
    (["train", "--lr", "0.1", "--lr-min", "0.2"], "lr_min is 0.2, but must not be above lr"),
    (["train", "--model", "resnet8"], "Did you mean resnet9?"),
    (["train", "--data", "cifar"], "Did you mean cifar"),
    (["train", "--data", "shapes", "--batch-size", "10001"], "training set of 10000 images"),
    (["train", "--epochs"], "expected one argument"),
    (["train", "resnet9", "again"], "'again' is one argument too many."),
    (["train", "--config", "missing.yaml"], "missing.yaml cannot be read"),
    (["train", "--name", "a/b"], "plain folder name"),
    (["summary", "resnet8"], "Did you mean resnet9?"),
    (["summary", "--classes", "0"], "--classes is '0'"),
    (["resume"], "required: RUN"),
    (["resume", "nowhere"], "Run nowhere does not exist."),
    (["report", "nowhere"], "Run nowhere does not exist."),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_line_and_writes_nothing(
    words: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_beside_another_recipes_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("recipe: quick\n")
    assert main(["train", "resnet9", "--config", str(path)]) == EXIT_BAD_INPUT
    assert "names 'quick'" in capsys.readouterr().err


def test_a_taken_name_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert main(["train", "--data", "shapes", "--name", "mine"]) == EXIT_BAD_INPUT
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "runs" / "mine").iterdir()) == []


def test_runs_dir_that_is_a_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    assert main(["train", "--data", "shapes"]) == EXIT_BAD_INPUT
    assert "is not a folder" in capsys.readouterr().err
    assert (tmp_path / "runs").read_text() == "a file"


def test_cifar_that_cannot_be_had_offers_shapes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "data" / "cifar-10-batches-py"
    damaged.mkdir(parents=True)
    (damaged / "data_batch_1").write_bytes(b"cut off")
    assert main(["train", "--data-root", "data"]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "cifar-10-batches-py" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_summary_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "resnet9", "--json"]) == EXIT_DONE
    summary = json.loads(capsys.readouterr().out)
    assert summary["totals"]["params"] == 6_573_120
    wanted = {"name", "type", "output_shape", "params", "macs", "receptive_field", "stride"}
    assert all(wanted <= set(layer) for layer in summary["layers"])
    fields = {layer["name"].split(".")[0]: layer["receptive_field"] for layer in summary["layers"]}
    assert fields == {"prep": 3, "layer1": 14, "layer2": 20, "layer3": 64, "pool": 88, "fc": 88}


def test_summary_as_text_and_other_widths(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--width", "8", "--classes", "100"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert "layer3.residual" in out
    assert "6,573,120" not in out


def test_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--json", "--data-root", str(tmp_path)]) == EXIT_DONE
    findings = json.loads(capsys.readouterr().out)
    assert findings["velodrome_uses"]["precision"] in ("fp32", "bf16", "fp16")
    assert findings["matrix_product_gflops"]["fp32"] > 0
    assert findings["data_root"] == str(tmp_path)


def test_dry_run_with_a_time_budget_promises_no_other_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", "shapes", "--dry-run", "--json", "--lr", "0.1", "--time-budget", "90s"]
    assert main(words) == EXIT_DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == "as many as fit into 90s"
    assert (plan["training_s"], plan["training_time"]) == (90.0, "90s, with the results and the page")
    assert "at its peak" in plan["schedule"]


def test_dry_run_says_what_would_happen_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "shapes", "--dry-run", "--json", "--lr", "0.1"]) == EXIT_DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == plan["epochs"] * plan["steps_per_epoch"] == 5 * 79
    assert plan["run_folder"] == "runs/quick-1"
    assert "0.01 at step 0, 0.0998 at step 82" in plan["schedule"]
    assert plan["training_s"] > 0
    assert main(["train", "--data-root", str(tmp_path / "none"), "--dry-run"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert "50,000 training" in out
    assert "would be downloaded to" in out
    assert list(tmp_path.iterdir()) == []


def test_our_own_fault_has_an_exit_code_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("velodrome.verbs.to_yaml", broken)
    assert main(["train", "--print-config"]) == 70
    assert "report it" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--limit-train", "1000"), ("--checkpoint-every", "5.0")])
def test_the_remedy_is_a_value_that_works(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", flag, "0"]) == EXIT_BAD_INPUT
    assert f"For instance {flag} {value}." in capsys.readouterr().err


def test_printed_config_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--print-config", "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["recipe"] == "speed94"


@pytest.mark.parametrize("words", [["--data-root", "~nobody-at-all/x"], ["--name", "\u5317" * 60]])
def test_odd_names_are_refused_in_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == EXIT_BAD_INPUT
    assert "but must be" in capsys.readouterr().err


def test_closed_streams_do_no_harm(tmp_path: Path) -> None:
    line = f"{sys.executable} -m velodrome summary --json 2>&- | head -c 10"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == '{"layers":'
