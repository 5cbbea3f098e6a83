"""What the operator is told by its environment."""

import pytest

from lathe_operator.settings import Settings, SettingsError, from_environment


def test_unset_and_empty_variables_keep_their_defaults():
    assert from_environment({"LATHE_STORE_URI": "", "PATH": "/bin"}) == Settings()


def test_each_variable_is_read():
    found = from_environment(
        {
            "LATHE_STORE_URI": "s3://bucket/x",
            "LATHE_WATCH_NAMESPACES": "vision, speech,",
            "LATHE_STAGE_ENV": '[{"name": "A", "value": "1"}]',
            "LATHE_RESYNC_SECONDS": "60",
        }
    )
    assert found.store_uri == "s3://bucket/x"
    assert found.watch_namespaces == ("vision", "speech")
    assert found.stage_env == ({"name": "A", "value": "1"},)
    assert found.resync_seconds == 60


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STAGE_ENV", "{}", "not a list of objects"),
        ("STAGE_VOLUMES", "[1]", "not a list of objects"),
        ("STAGE_MOUNTS", "[", "not JSON"),
        ("RESYNC_SECONDS", "soon", "not a number"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(name, value, words):
    with pytest.raises(SettingsError, match=f"LATHE_{name}: {words}"):
        from_environment({f"LATHE_{name}": value})
