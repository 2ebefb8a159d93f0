"""What a packed step gives to the steps after it, and which methods can go on."""

from kproba.plan.errors import ConfigError
from kproba.plan.jobs import Received, ReceivedBank
from kproba.plan.methods import PlannedMethod
from kproba.predict.packed import PackedStep

# Whose features a packed bank is of, in words of `bank.network`.
_NETWORKS = {"base": "step0", "after": "network", "before": None}


def check_packed(packed: PackedStep, method: PlannedMethod) -> None:
    """Refuse a method that cannot go on from a packed step.

    Raises:
        ConfigError: It trains all classes at once, or has another head.
    """
    if method.method.joint:
        raise ConfigError(
            f"Expected a method that learns step by step, but got '{method.name}', "
            f"which needs the pictures of all classes: those of {packed.path} are not "
            f"here. Remove it from `methods` of this dataset."
        )
    if method.method.head != packed.head:
        raise ConfigError(
            f"Expected a method with the head '{packed.head}' of the network in "
            f"{packed.path}, but '{method.name}' has '{method.method.head}'. Choose "
            f"another method, such as '{packed.method}'."
        )


def can_go_on(packed: PackedStep, method: PlannedMethod) -> bool:
    """Whether a method can go on from a packed step, bank included."""
    try:
        check_packed(packed, method)
        if method.reads_bank:
            received_bank(packed, packed.step, method)
    except ConfigError:
        return False
    return True


def received_network(packed: PackedStep, step: int) -> Received:
    """The network of a step of a run that was packed.

    Args:
        packed: The packed step, t.
        step: 0 or t.

    Raises:
        ConfigError: The archive does not hold the network of this step.
    """
    if step == packed.step:
        return Received(packed.digest, "step")
    if step == 0 and packed.features == "step0":
        return Received(packed.digest, "step0")
    raise ConfigError(
        f"Expected the network of step {step} in {packed.path}, but it holds that of "
        f"step {packed.step} alone. Choose a method whose bank needs no other, or set "
        f"bank.network to after."
    )


def received_bank(packed: PackedStep, step: int, method: PlannedMethod) -> ReceivedBank:
    """The bank of a packed step, for a method that goes on with it.

    Raises:
        ConfigError: There is none, or the method builds its bank otherwise.
    """
    if packed.bank is None or step != packed.step:
        raise ConfigError(
            f"Expected the prototype bank of step {step} in {packed.path}, which "
            f"'{method.name}' goes on with, but there is none. Choose a method "
            f"without a bank, such as 'barm' or 'finetune'."
        )
    network = "step" if packed.features == "network" else "step0"
    wanted = _NETWORKS[method.bank_network]
    fits = packed.step == 0 or wanted == packed.features
    present = vars(packed.bank)
    different = [
        f"{key} is {present.get(key)!r} there and {value!r} here"
        for key, value in method.bank.items()
        if present.get(key) != value
    ]
    if not fits:
        different.append("it is of the features of another network")
    if different:
        raise ConfigError(
            f"Expected a bank in {packed.path} that is built as '{method.name}' builds "
            f"it, but {'; '.join(different)}. Set the section `bank` as it was there."
        )
    return ReceivedBank(packed.digest, Received(packed.digest, network))
