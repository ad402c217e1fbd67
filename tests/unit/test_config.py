"""The configuration: one file, typed values, and one line that says what is wrong with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distfs.config import file as config_file
from distfs.config.settings import AUTO, Config, Seconds, StorageConfig
from distfs.errors import ConfigError
from distfs.model import Policy

ROOT = Path(__file__).resolve().parents[2]


def refused(tree: object) -> str:
    """The one line ``tree`` is refused with."""
    with pytest.raises(ConfigError) as caught:
        config_file.parse(tree)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    file = tmp_path / "c.yml"
    file.write_text(text)
    return config_file.load(str(file), environ)


def load_refused(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the file that is shipped --------------------------------------------------------------------


def test_the_shipped_file_equals_the_defaults() -> None:
    assert config_file.load(str(ROOT / "config.yml"), {}) == Config()


def test_the_shipped_file_shows_every_key() -> None:
    tree = yaml.safe_load((ROOT / "config.yml").read_text())
    for section in dataclasses.fields(Config):
        keys = {f.name for f in dataclasses.fields(getattr(Config(), section.name))}
        assert set(tree[section.name]) == keys


def test_the_shipped_file_explains_every_section() -> None:
    lines = (ROOT / "config.yml").read_text().splitlines()
    heads = [line for line in lines if line[:1].isalpha()]
    assert [h.split(":")[0] for h in heads] == [f.name for f in dataclasses.fields(Config)]
    assert all(": # " in h for h in heads)


# --- where it is read from -----------------------------------------------------------------------


def test_no_file_means_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file.load(None, {}) == Config()


def test_config_yml_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yml").write_text("http: {port: 1234}")
    monkeypatch.chdir(tmp_path)
    assert config_file.load(None, {}).http.port == 1234


def test_metadb_is_where_all_data_are_unless_it_is_said_to_be_elsewhere(tmp_path: Path) -> None:
    moved = "local: {data: /srv/distfs}\n"
    assert load(tmp_path, moved).metadb.url == "embedded:/srv/distfs/metadb"
    elsewhere = "metadb: {url: 'embedded:/ssd/metadb'}\n"
    assert load(tmp_path, moved + elsewhere).metadb.url == "embedded:/ssd/metadb"


def test_an_empty_variable_is_an_empty_list(tmp_path: Path) -> None:
    assert Config().callers.exempt
    assert load(tmp_path, "", DISTFS_CALLERS_EXEMPT="").callers.exempt == ()


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.yml: No such file"):
        config_file.load(str(tmp_path / "nowhere.yml"), {})


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*: Is a directory"):
        config_file.load(str(tmp_path), {})


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "http:\n", "http:\nstorage: {}\n"])
def test_empty_files_and_sections_mean_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Config()


def test_an_empty_section_can_be_filled_by_the_environment(tmp_path: Path) -> None:
    assert load(tmp_path, "http:\n", DISTFS_HTTP_PORT="81").http.port == 81


def test_broken_yaml_names_the_file_and_the_line(tmp_path: Path) -> None:
    assert "c.yml is not right as YAML, line 2" in load_refused(tmp_path, "http: {port: 80}\n  x: [\n")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_bytes(b"http: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 text: .* at byte 6"):
        config_file.load(str(tmp_path / "c.yml"), {})


def test_a_control_character_is_refused(tmp_path: Path) -> None:
    assert "is not YAML" in load_refused(tmp_path, "http: \x00")


@pytest.mark.parametrize(
    "text", ["http: {port: 1}\nlog: {}\nhttp: {port: 2}\n", "http:\n  port: 1\n  port: 2\n"]
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str) -> None:
    assert "is there twice" in load_refused(tmp_path, text)


@pytest.mark.parametrize(("tree", "words"), [([1], "the file must be"), ({"http": [1]}, "http must be")])
def test_a_section_must_be_a_mapping(tree: object, words: str) -> None:
    assert f"config: {words} a mapping of keys" in refused(tree)


# --- keys ----------------------------------------------------------------------------------------


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    assert refused({"http": {"prot": 80}}) == "config: unknown key http.prot; did you mean http.port?"


def test_an_unknown_section_names_the_nearest_known_one() -> None:
    assert refused({"storge": {}}) == "config: unknown key storge; did you mean storage?"


def test_a_key_like_no_other_lists_the_known_ones() -> None:
    assert (
        refused({"log": {"qqq": 1}})
        == "config: unknown key log.qqq; known: level, format, dir, max_bytes, keep_for, store, syslog"
    )


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("5B", 5),
        ("1k", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("32MiB", 32 << 20),
        ("100MB", 10**8),
        ("10 GB", 10**10),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("1PB", 10**15),
        (4096, 4096),
    ],
)
def test_sizes_have_units(text: object, size: int) -> None:
    assert config_file.parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1 XB", "1e9", "ten", "1,5GB", "٣", ".5GB", True, None, [1], "10%"]
)
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    assert refused({"http": {"max_file_size": text}}).endswith("is not a size such as 32MiB or 10GB")


@given(st.integers(0, 2**50))
def test_plain_bytes_are_kept_exactly(size: int) -> None:
    assert config_file.parse_bytes(size) == config_file.parse_bytes(str(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2), ("2", 2), (2.5, 2.5), ("10min", 600), ("1h", 3600), ("1d", 86400)],
)
def test_times_have_units(text: object, seconds: float) -> None:
    assert config_file.parse({"http": {"idle_timeout": text}}).http.idle_timeout == seconds


def test_what_is_no_time_is_refused_with_an_example() -> None:
    assert refused({"http": {"idle_timeout": "soon"}}) == (
        "config: http.idle_timeout: 'soon' is not a time such as 500ms, 10s or 10min"
    )


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.25", 0.25), (0, 0)])
def test_shares_are_percent_or_fractions(text: object, share: float) -> None:
    assert config_file.parse({"node": {"reserve": text}}).node.reserve == share


@pytest.mark.parametrize("text", ["100%", "1", "-1%", "lots"])
def test_a_share_is_below_all(text: str) -> None:
    assert refused({"node": {"reserve": text}}).startswith(f"config: node.reserve: {text!r}")


@pytest.mark.parametrize(("text", "rate"), [("1MiB/s", 1 << 20), ("1MiB", 1 << 20), (1000, 1000)])
def test_rates_are_bytes_a_second(text: object, rate: int) -> None:
    assert config_file.parse({"peers": {"min_rate": text}}).peers.min_rate == rate


@pytest.mark.parametrize("value", ["many", -1, "-1", 1.5, True, None, "", [3], "٣"])
def test_counts_are_whole_numbers(value: object) -> None:
    assert refused({"http": {"threads": value}}).endswith("is not a whole number of 0 or more")


@pytest.mark.parametrize(("value", "processes"), [("auto", AUTO), ("1", 1), (12, 12)])
def test_processes_are_a_number_or_auto(value: object, processes: int) -> None:
    room = {"storage": {"memory_budget": "1GiB"}, "metadb": {"pool_size": 12}}
    assert config_file.parse({"http": {"processes": value}, **room}).http.processes == processes


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "Auto", "all", "257", "1000", True, ""])
def test_what_is_neither_is_refused(value: object) -> None:
    assert refused({"http": {"processes": value}}).endswith("is not auto or a number from 1 to 256")


@pytest.mark.parametrize("value", [["a"], {"a": "b"}])
def test_text_is_text(value: object) -> None:
    assert refused({"node": {"zone": value}}).endswith("is not text")


@pytest.mark.parametrize("word", ["off", "no", "null", "1:30", "010", "2026-01-01", "~"])
def test_text_is_not_guessed_at_by_yaml(tmp_path: Path, word: str) -> None:
    assert load(tmp_path, f"node: {{zone: {word}}}").node.zone == word


def test_direct_io_can_be_switched_off(tmp_path: Path) -> None:
    assert load(tmp_path, "node: {direct_io: off}").node.direct_io == "off"


def test_policies_have_names_and_a_default() -> None:
    policies = config_file.parse(
        {"storage": {"policies": {"default": "1+1", "wide": "4 + 2"}}}
    ).storage.policies
    assert policies == {"default": Policy(1, 1), "wide": Policy(4, 2)}


@pytest.mark.parametrize("value", ["1+1", {}, {"wide": "4+2"}, None])
def test_policies_without_a_default_are_refused(value: object) -> None:
    assert "'default', for example {default: 1+1}" in refused({"storage": {"policies": value}})


@pytest.mark.parametrize("text", ["2", "0+1", "1+9", "9+1", "1+-1", "one+one", "1+1+1"])
def test_a_policy_out_of_bounds_is_refused(text: str) -> None:
    line = refused({"storage": {"policies": {"default": text}}})
    assert line.startswith(f"config: storage.policies: policy {text!r}")


def test_callers_are_rows_with_defaults() -> None:
    rows = [{"match": "10.0.0.0/8", "weight": "2"}, {"match": "X-Team=gold", "cap_out": "1MiB/s"}]
    callers = config_file.parse({"callers": {"rules": rows, "trusted_proxies": ["::1"]}}).callers
    assert [str(rule.match) for rule in callers.rules] == ["10.0.0.0/8", "X-Team=gold"]
    assert [float(rule.weight) for rule in callers.rules] == [2, 1]
    assert [int(rule.cap_out) for rule in callers.rules] == [0, 1 << 20]
    assert [int(rule.max_file_size) for rule in callers.rules] == [0, 0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("10.0.0.0/8", "must be a list, for example [{match: 10.0.0.0/8, weight: 2}]"),
        ([{"weight": "2"}], "row 1 must have a 'match', for example {match: 10.0.0.0/8, weight: 2}"),
        ([{"match": "10.0.0.0/8", "wieght": "2"}], "row 1: unknown key wieght; did you mean weight?"),
        ([{"match": "10.0.0.0/8", "weight": "0"}], "row 1: weight: '0' must be from 0.001 to 1000"),
        (
            [{"match": "here"}],
            "row 1: match: 'here' is not an address range such as 10.0.0.0/8 or 2001:db8::/32",
        ),
    ],
)
def test_a_bad_row_of_callers_is_named(rows: object, words: str) -> None:
    assert refused({"callers": {"rules": rows}}) == f"config: callers.rules: {words}"


def test_callers_can_come_from_the_environment(tmp_path: Path) -> None:
    c = load(tmp_path, "", DISTFS_CALLERS_RULES="[{match: 10.0.0.0/8, weight: 3}]")
    assert [float(rule.weight) for rule in c.callers.rules] == [3]


# --- the environment -----------------------------------------------------------------------------


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    c = load(tmp_path, "http: {port: 80, host: here}", DISTFS_HTTP_PORT="81", DISTFS_NODE_DOWN_AFTER="1min")
    assert (c.http.port, c.http.host) == (81, "here")
    assert c.node.down_after == Seconds(60)


def test_the_environment_of_the_process_is_used_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yml").write_text("")
    monkeypatch.setenv("DISTFS_LOCAL_NODES", "7")
    assert config_file.load(str(tmp_path / "c.yml")).local.nodes == 7


@pytest.mark.parametrize(
    ("policy", "min_redundancy", "fewest"),
    [("1+0", 1, 1), ("1+1", 0, 1), ("1+1", 1, 2), ("1+2", 1, 2), ("1+2", 9, 3), ("4+2", 1, 5), ("4+2", 2, 6)],
)
def test_a_degraded_write_needs_min_redundancy_and_never_more_than_the_policy_has(
    policy: str, min_redundancy: int, fewest: int
) -> None:
    assert StorageConfig(min_redundancy=min_redundancy).fewest(Policy.parse(policy)) == fewest


def test_policies_can_come_from_the_environment(tmp_path: Path) -> None:
    c = load(tmp_path, "", DISTFS_STORAGE_POLICIES="{default: 1+2}")
    assert c.storage.policy == Policy(1, 2)


@pytest.mark.parametrize("url", ["postgresql://u:p #x@h/d", "postgresql://u:{[@h/d", "off", "embedded:/a: b"])
def test_text_from_the_environment_is_taken_as_it_is(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, "", DISTFS_METADB_URL=url).metadb.url == url


def test_an_unknown_variable_of_a_section_names_the_nearest_one(tmp_path: Path) -> None:
    assert load_refused(tmp_path, "", DISTFS_HTTP_PROT="80") == (
        "environment: unknown DISTFS_HTTP_PROT; did you mean DISTFS_HTTP_PORT?"
    )


@pytest.mark.parametrize("value", ["", "{", "eighty"])
def test_a_bad_value_names_its_variable(tmp_path: Path, value: str) -> None:
    assert load_refused(tmp_path, "", DISTFS_HTTP_PORT=value).startswith("DISTFS_HTTP_PORT: ")


def test_bad_yaml_in_a_variable_names_it(tmp_path: Path) -> None:
    assert load_refused(tmp_path, "", DISTFS_STORAGE_POLICIES="{").startswith(
        "DISTFS_STORAGE_POLICIES is not"
    )


@pytest.mark.parametrize("text", ["? [a]\n: b", "http: {? {a: b} : c}"])
def test_a_key_that_is_no_word_is_one_line(tmp_path: Path, text: str) -> None:
    assert "a key is no word" in load_refused(tmp_path, text)


def test_a_misspelt_section_of_the_environment_is_named(tmp_path: Path) -> None:
    assert load_refused(tmp_path, "", DISTFS_HTP_PORT="80") == (
        "environment: unknown DISTFS_HTP_PORT; did you mean DISTFS_HTTP_PORT?"
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DISTFS_PORT", "DISTFS_HTTP_PORT or DISTFS_NODE_PORT"),
        ("DISTFS_DATA", "DISTFS_NODE_DATA or DISTFS_LOCAL_DATA"),
        ("DISTFS_METADBURL", "DISTFS_METADB_URL"),
        ("DISTFS_LOGLEVEL", "DISTFS_LOG_LEVEL"),
        ("DISTFS_STORGE_POLICY", "DISTFS_STORAGE_POLICIES"),
    ],
)
def test_an_unknown_variable_is_refused_with_those_that_may_be_meant(
    tmp_path: Path, name: str, meant: str
) -> None:
    assert load_refused(tmp_path, "", **{name: "1"}) == f"environment: unknown {name}; did you mean {meant}?"


def test_more_redundancy_than_any_policy_has_is_refused(tmp_path: Path) -> None:
    three = "storage: {min_redundancy: 3, policies: {default: 1+1, archive: 4+%d}}"
    assert load(tmp_path, three % 3).storage.min_redundancy == 3
    assert "storage.min_redundancy must be at most 2" in load_refused(tmp_path, three % 2)
    assert load(tmp_path, "storage: {policies: {default: 1+0}}").storage.min_redundancy == 1


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    theirs = {
        "DISTFS_URL": "http://x",
        "DISTFS_TOKEN": "t",
        "HTTP_PORT": "1",
        "DISTFS": "1",
        "DISTFSHTTP_PORT": "1",
    }
    of_kubernetes = {
        "DISTFS_PORT": "tcp://10.0.0.1:80",
        "DISTFS_PORT_80_TCP_PORT": "80",
        "DISTFS_PORT_80_TCP": "tcp://10.0.0.1:80",
        "DISTFS_SERVICE_HOST": "x",
        "DISTFS_SERVICE_PORT_HTTP": "80",
        "DISTFS_NODE_PORT": "tcp://10.0.0.2:9001",  # of a service that is called distfs-node
        "DISTFS_NODE_SERVICE_HOST": "10.0.0.2",
        "DISTFS_WEB_PORT": "tcp://10.0.0.3:80",
    }
    assert load(tmp_path, "", **theirs, **of_kubernetes) == Config()


# --- relations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("http", {"port": 65536}, "http.port must be"),
        ("http", {"threads": 0}, "http.threads must be at least 1"),
        ("http", {"max_file_size": 0}, "http.max_file_size"),
        ("http", {"max_connections": 0}, "http.max_connections"),
        ("http", {"max_header": "32KiB"}, "http.max_header must be at least http.max_header_line"),
        ("http", {"max_header": "2MiB"}, "http.max_header must be at most 1MiB"),
        ("http", {"max_header_line": 255}, "http.max_header_line"),
        ("http", {"max_header_lines": 7}, "http.max_header_lines"),
        ("http", {"max_chunk_line": 31}, "http.max_chunk_line"),
        ("http", {"max_trailer": 255}, "http.max_trailer"),
        ("http", {"idle_timeout": 0}, "http.idle_timeout"),
        ("http", {"client_stall_timeout": 0}, "http.client_stall_timeout"),
        ("http", {"client_min_rate": 0}, "http.client_min_rate"),
        ("bandwidth", {"mode": "unfair"}, "bandwidth.mode must be 'fair' or 'batch'"),
        (
            "callers",
            {"rules": [{"match": "X-Team=a"}]},
            "callers.trusted_proxies must list who may say",
        ),
        ("storage", {"block_size": "1KiB"}, "storage.block_size must be at least 4KiB"),
        ("storage", {"block_size": "32MiB"}, "storage.block_size must be at most 16MiB"),
        ("storage", {"block_size": 5000}, "storage.block_size must be a multiple of 4KiB"),
        ("storage", {"slice_size": "1500KiB"}, "storage.slice_size must be a multiple of storage.block_size"),
        ("storage", {"slice_size": 0}, "storage.slice_size must be a multiple of storage.block_size"),
        ("storage", {"slice_size": "2GiB"}, "storage.slice_size must be at most 1GiB"),
        ("storage", {"window": "3MiB"}, "storage.window must be at least four times storage.block_size"),
        ("storage", {"memory_budget": "23MiB"}, "storage.memory_budget must be at least storage.window"),
        ("storage", {"parallel_slices": 0}, "storage.parallel_slices"),
        ("metadb", {"pool_size": 0}, "metadb.pool_size"),
        ("metadb", {"connect_timeout": 0}, "metadb.connect_timeout"),
        ("metadb", {"statement_timeout": 0}, "metadb.statement_timeout"),
        ("node", {"port": 70000}, "node.port must be"),
        ("node", {"write_buffer": 5000}, "node.write_buffer must be a multiple of 4KiB"),
        ("node", {"write_buffer": 0}, "node.write_buffer must be a multiple of 4KiB"),
        ("node", {"direct_io": "always"}, "node.direct_io must be 'auto' or 'off'"),
        ("node", {"heartbeat": 0}, "node.heartbeat"),
        ("node", {"down_after": "4s"}, "node.down_after must be more than twice node.heartbeat"),
        ("peers", {"connect_timeout": 0}, "peers.connect_timeout"),
        ("peers", {"stall_timeout": 0}, "peers.stall_timeout"),
        ("peers", {"base_timeout": 0}, "peers.base_timeout"),
        ("peers", {"min_rate": 0}, "peers.min_rate"),
        ("local", {"nodes": 0}, "local.nodes"),
        ("log", {"format": "xml"}, "log.format"),
        ("log", {"level": "LOUD"}, "log.level"),
    ],
)
def test_relations_are_checked_and_name_their_keys(
    section: str, values: dict[str, object], words: str
) -> None:
    assert refused({section: values}).startswith(f"config: {words}")


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("storage", "memory_budget"),
        ("metadb", "pool_size"),
        ("http", "max_connections"),
        ("http", "threads"),
        ("peers", "max_connections"),
    ],
)
def test_every_process_has_a_part_of_what_a_service_may_have(section: str, key: str) -> None:
    enough: dict[str, dict[str, object]] = {
        "storage": {"memory_budget": "72MiB"},
        "metadb": {"pool_size": 3},
        "http": {"processes": 3, "max_connections": 3, "threads": 3},
        "peers": {"max_connections": 3},
    }
    assert config_file.parse(enough).http.processes == 3
    too_few = {**enough, section: {**enough[section], key: "71MiB" if key == "memory_budget" else 2}}
    assert refused(too_few).startswith(f"config: {section}.{key} must be at least ")


def test_flags_replace_what_they_name_only() -> None:
    c = config_file.override(Config(), "http", host=None, port=9000)
    assert (c.http.host, c.http.port) == ("127.0.0.1", 9000)


def test_flags_are_checked_like_the_file() -> None:
    with pytest.raises(ConfigError, match=r"http.port must be 0 \(any free port\) to 65535"):
        config_file.override(Config(), "http", port=-1)
