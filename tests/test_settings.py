"""One settings object from environment and YAML, and the command line made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpupool.errors import ConfigError
from gpupool.flags import explain, flags, render_help, render_table
from gpupool.refusal import explain_file
from gpupool.settings import Settings, env_name, read_settings


def refusal(monkeypatch: pytest.MonkeyPatch, **env: str) -> str:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        read_settings()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fraction_of_a_gpu_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal(monkeypatch, PER_PROC_GPUS="0.5")
    assert "--per_proc_gpus (PER_PROC_GPUS) is '0.5': a lease is of whole GPUs" in text


def test_the_five_old_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HF_MODEL_NAME": "m",
        "PER_PROC_GPUS": "2",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "PORT": "7000",
        "INFER_TYPE": "vLLM",
    }.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.model_name == "m"
    assert settings.per_proc_gpus == 2
    assert settings.cuda_visible_devices == "0,1"
    assert settings.port == 7000
    assert settings.infer_type == "vllm"


def test_defaults_are_the_documented_ones() -> None:
    settings = read_settings()
    assert (settings.port, settings.host, settings.per_proc_gpus) == (5002, "127.0.0.1", 1)


def test_engine_arguments_are_split_like_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUPOOL_ENGINE_ARGS", "--a 'b c' --d")
    assert read_settings().engine_args == ("--a", "b c", "--d")


def test_yaml_sets_what_the_environment_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text("model_name: from-yaml\nport: 7001\napi_key: [a, b]\n")
    monkeypatch.setenv("GPUPOOL_CONFIG", str(path))
    monkeypatch.setenv("PORT", "7002")
    settings = read_settings()
    assert (settings.model_name, settings.port) == ("from-yaml", 7002)
    assert settings.api_key == ("a", "b")


def test_an_unknown_yaml_key_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text("modelname: x\n")
    message = refusal(monkeypatch, GPUPOOL_CONFIG=str(path))
    assert "'modelname'" in message
    assert "'model_name'" in message


def test_broken_yaml_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text("port: [1\n")
    assert "not valid YAML" in refusal(monkeypatch, GPUPOOL_CONFIG=str(path))


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "/nowhere.yaml" in refusal(monkeypatch, GPUPOOL_CONFIG="/nowhere.yaml")


def test_a_bad_value_names_flag_variable_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, PORT="many")
    assert "--port (PORT) is 'many'" in message


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("PORT", "many", "give a whole number"),
        ("PORT", "", "give a whole number"),
        ("PORT", "99999", "give 65535 or less"),
        ("GPUPOOL_WORKERS", "0", "give 1 or more"),
        ("GPUPOOL_READ_TIMEOUT_S", "0", "give more than 0"),
        ("GPUPOOL_READ_TIMEOUT_S", "soon", "give a number"),
        ("GPUPOOL_TRUST_REMOTE_CODE", "perhaps", "give true or false"),
        ("PER_PROC_GPUS", "two", "use a number from 1 up, or auto"),
        ("PER_PROC_GPUS", "0", "use a number from 1 up, or auto"),
        ("PER_PROC_GPUS", "-1", "use a number from 1 up, or auto"),
    ],
)
def test_a_bad_value_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, remedy: str
) -> None:
    message = refusal(monkeypatch, **{name: value})
    assert message.endswith(f"({name}) is {value!r}: {remedy}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"- port\n", "has no settings; each is a line"),
        (b"port 5002\n", "has no settings; each is a line"),
        (b"5002\n", "has no settings; each is a line"),
        (b"GGUF\xff\xfe\x00", "is not a text file"),
        (b"port: [1\n", "is not valid YAML"),
        (
            b"port: 1\nhost: h\nport: 2\n",
            "'port' is given twice (line 3); give it once",
        ),
        (b"port: [1]\n", "give a whole number"),
        (b"model_name: 7\n", "give a text, in quotes"),
    ],
    ids=["list", "words", "number", "binary", "syntax", "twice", "list-value", "number-value"],
)
def test_a_file_without_settings_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "pool.yaml"
    path.write_bytes(content)
    assert reason in refusal(monkeypatch, GPUPOOL_CONFIG=str(path))


def test_an_empty_file_sets_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").touch()
    monkeypatch.setenv("GPUPOOL_CONFIG", str(tmp_path / "pool.yaml"))
    assert read_settings().port == 5002


def test_a_folder_is_no_file_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "no such file" in refusal(monkeypatch, GPUPOOL_CONFIG=str(tmp_path))


def test_a_file_that_may_not_be_read_is_not_called_broken() -> None:
    message = explain_file("pool.yaml", PermissionError(13, "Permission denied"))
    assert message == "--config 'pool.yaml' cannot be read: Permission denied"


def test_an_unknown_engine_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean 'transformers'" in refusal(monkeypatch, INFER_TYPE="transformer")


def test_on_and_off_need_no_quotes_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """YAML 1.1 reads them as true and false, which was refused."""
    path = tmp_path / "pool.yaml"
    path.write_text("access_log: off\nmemory_plan: off\n")
    monkeypatch.setenv("GPUPOOL_CONFIG", str(path))
    settings = read_settings()
    assert (settings.access_log, settings.memory_plan) == ("off", "off")
    path.write_text("access_log: on\n")
    assert read_settings().access_log == "on"


@pytest.mark.parametrize("value", ["", " ", ",", "a,", "schlüssel", "a\tb"])
def test_a_key_that_protects_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    assert "--api_key" in refusal(monkeypatch, GPUPOOL_API_KEY=value)


def test_a_refused_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "geheim" not in refusal(monkeypatch, GPUPOOL_API_KEY="geheim-schlüssel")


def test_a_number_for_a_key_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text("api_key: 12345\n")
    assert "must be a string" in refusal(monkeypatch, GPUPOOL_CONFIG=str(path))


def test_an_unknown_variable_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GPUPOOL_HOST" in refusal(monkeypatch, GPUPOOL_HOSTS="x")


def test_every_setting_with_a_flag_is_in_the_help() -> None:
    text = render_help()
    for name, field in Settings.model_fields.items():
        if name != "engine_args":
            assert f"--{name}" in text
            assert f"[{env_name(name)}]" in " ".join(text.split())
            assert field.description


def test_every_flag_has_its_hyphen_form() -> None:
    spellings = {line.split("\t")[0] for line in render_table().splitlines()}
    for flag in flags():
        assert flag.spellings[0].replace("_", "-") in spellings


def test_the_oldest_spellings_stay() -> None:
    spellings = {line.split("\t")[0] for line in render_table().splitlines()}
    old = {"hf-model-name", "per-proc-gpus", "cuda-visible-devices", "infer-type", "port"}
    assert old <= spellings


def test_the_table_is_made_of_three_columns() -> None:
    for line in render_table().splitlines():
        assert re.fullmatch(r"[a-z0-9_-]+\t[A-Z_]+\t(value|switch|list)", line)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("modle_name", "(did you mean --model_name?)"),
        ("modle", "(did you mean --model_name?)"),
        ("ctx-size", "which is an engine's; engine arguments go after --, as `-- --ctx-size ...`"),
        ("max_model_len", "as `-- --max-model-len ...`"),
        ("tensor-parallel-size", "; the GPUs of a worker are --per_proc_gpus"),
        ("gpu-memory-utilisation", "(did you mean --gpu-memory-utilization, after -- ?)"),
        ("zzzzz", "option '--zzzzz'; see"),
    ],
)
def test_a_flag_that_is_none_gets_the_nearest_or_its_place(flag: str, said: str) -> None:
    assert said in explain(f"start_gunicorn.sh: unrecognized option '--{flag}'\n")


def test_a_file_of_keys_that_cannot_be_read_is_named_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = refusal(monkeypatch, GPUPOOL_API_KEY_FILE=str(tmp_path / "none"))
    assert told == (
        f"--api_key_file (GPUPOOL_API_KEY_FILE) is '{tmp_path}/none': cannot be read: No such file "
        "or directory"
    )
