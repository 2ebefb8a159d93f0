"""The network and bank of a packed step, and the methods that can continue from it."""

from kproba.methods.method import PRETRAINED
from kproba.plan.errors import ConfigError
from kproba.plan.jobs import Received, ReceivedBank
from kproba.plan.methods import PlannedMethod
from kproba.predict.packed import PackedStep

# The network of a packed bank's features, in the words of `bank.network`.
_NETWORKS = {
    "base": "step0",
    PRETRAINED: PRETRAINED,
    "after": "network",
    "before": None,
}


def check_packed(packed: PackedStep, method: PlannedMethod) -> None:
    """Refuse a method that cannot continue from a packed step.

    Raises:
        ConfigError: It is trained on everything at once, draws features of old classes,
            keeps old images, or has another head.
    """
    if method.method.joint:
        raise ConfigError(
            f"Expected a method that learns step by step, but got '{method.name}', "
            f"which needs the pictures of all classes. The pictures of {packed.path} "
            f"are not available here. Remove it from `methods` of this dataset."
        )
    if method.replays:
        raise ConfigError(
            f"Expected a method that needs no statistics of the old classes, but got "
            f"'{method.name}', and {packed.path} does not hold them. Choose another "
            f"method, or train all steps in one place."
        )
    if method.has_memory:
        raise ConfigError(
            f"Expected a method without a memory of old images, but '{method.name}' "
            f"has memory.images = {method.memory['images']}, and {packed.path} holds "
            f"no pictures. Set memory.images to 0 for this method, or continue from "
            f"the results of the step in place of its archive."
        )
    if method.method.head != packed.head:
        raise ConfigError(
            f"Expected a method with the head '{packed.head}' of the network in "
            f"{packed.path}, but '{method.name}' has '{method.method.head}'. Choose "
            f"another method, such as '{packed.method}'."
        )


def can_go_on(packed: PackedStep, method: PlannedMethod) -> bool:
    """Whether a method can continue from a packed step, with its bank."""
    try:
        check_packed(packed, method)
        if method.reads_bank:
            received_bank(packed, packed.step, method)
    except ConfigError:
        return False
    return True


def received_network(packed: PackedStep, step: int) -> Received:
    """The network of step 0 or t in a packed step t.

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
        f"Expected the network of step {step} in {packed.path}, but the archive holds "
        f"only the network of step {packed.step}. Choose a method whose bank needs no "
        f"other network, or set bank.network to after."
    )


def received_features(packed: PackedStep) -> Received:
    """The network before step 0 in a packed step, whose features its bank uses.

    Raises:
        ConfigError: The archive does not hold it.
    """
    if packed.features != PRETRAINED:
        raise ConfigError(
            f"Expected the network before step 0 in {packed.path}, because "
            f"bank.network is '{PRETRAINED}', but the archive does not hold it. Set "
            f"bank.network to that of the archive."
        )
    return Received(packed.digest, "step0")


def received_bank(packed: PackedStep, step: int, method: PlannedMethod) -> ReceivedBank:
    """The bank of a packed step, for a method that continues from it.

    Raises:
        ConfigError: There is none, or the method builds its bank in another way.
    """
    if packed.bank is None or step != packed.step:
        raise ConfigError(
            f"Expected the prototype bank of step {step} in {packed.path}, because "
            f"'{method.name}' continues from it, but there is none. Choose a method "
            f"without a bank, such as 'barm' or 'finetune'."
        )
    network = "step" if packed.features == "network" else "step0"
    wanted = _NETWORKS[method.bank_network]
    fits = wanted == packed.features
    if packed.step == 0:  # whose network is that of step 0
        fits = fits or PRETRAINED not in (wanted, packed.features)
    present = vars(packed.bank)
    different = [
        f"`{key}` is {present.get(key)!r} in the archive and {value!r} in the "
        f"configuration"
        for key, value in method.bank.items()
        if present.get(key) != value
    ]
    if not fits:
        different.append("it uses the features of another network")
    if different:
        raise ConfigError(
            f"Expected a bank in {packed.path} with the settings of '{method.name}', "
            f"but {'; '.join(different)}. Change the section `bank` to the settings of "
            f"the archive."
        )
    return ReceivedBank(packed.digest, Received(packed.digest, network))
