"""References to code by dotted name, and the errors of wrong ones."""

import json
import sys

import pytest

from kproba.runtime.references import resolve


def test_a_reference_leads_to_the_function_or_class_it_names():
    assert resolve("json:dumps") is json.dumps
    assert resolve("json.decoder:JSONDecoder") is json.JSONDecoder


def test_a_callable_is_returned_as_it_is():
    assert resolve(json.dumps) is json.dumps


@pytest.mark.parametrize(
    "reference", ["", "json", "json:", ":dumps", "json.dumps", ".json:dumps", "a:b:c"]
)
def test_references_of_another_form_are_refused(reference):
    with pytest.raises(ValueError, match="of the form 'package") as caught:
        resolve(reference)
    assert repr(reference) in str(caught.value)


@pytest.mark.parametrize("module", ["nowhere", "nowhere.at_all", "json.nowhere"])
def test_a_module_that_does_not_exist_is_named(module):
    with pytest.raises(ImportError, match=f"Expected a module {module} for") as caught:
        resolve(f"{module}:name")
    assert "no module" in str(caught.value)


def test_a_name_that_the_module_lacks_is_named():
    with pytest.raises(ImportError, match="Expected 'dump_all' in json for"):
        resolve("json:dump_all")


@pytest.mark.parametrize("reference", ["json:__name__", 3, None])
def test_what_cannot_be_called_is_refused(reference):
    with pytest.raises(TypeError, match="Expected a"):
        resolve(reference)


@pytest.mark.parametrize(
    ("code", "error"), [("import nowhere", ImportError), ("1 / 0", ZeroDivisionError)]
)
def test_errors_of_the_module_itself_pass_through(tmp_path, monkeypatch, code, error):
    (tmp_path / "broken_module.py").write_text(f"{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error) as caught:
        resolve("broken_module:name")
    assert "broken_module" in caught.value.__notes__[0]
    assert "Expected" not in str(caught.value)
    assert "broken_module" not in sys.modules
