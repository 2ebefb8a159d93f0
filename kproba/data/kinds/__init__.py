"""The kinds of dataset, by their name in the configuration.

- `digits`: drawn by `kproba.data.kinds.digits`, in the form of a folder.
- `glyphs`: drawn by `kproba.data.kinds.glyphs`, with up to 253 classes; the same form.
- `folder`: images/{train,val}/ and masks/{train,val}/ with equal names; without val a
  share is held out by a hash of the name.
- `voc`: JPEGImages/ and SegmentationClassAug/, with the usual lists of 10,582 and 1,449
  ids.
- `ade20k`: images/{training,validation}/ and annotations/{training,validation}/.
- `packed`: a step that `kproba pack` wrote, without its pictures.

Nothing here imports torch, because every call of Snakemake reads class names.
"""

from kproba.data.kinds.ade20k import ADE20K
from kproba.data.kinds.digits import DIGITS
from kproba.data.kinds.folder import FOLDER
from kproba.data.kinds.glyphs import GLYPHS
from kproba.data.kinds.kind import DatasetKind
from kproba.data.kinds.packed import PACKED
from kproba.data.kinds.voc import VOC

KINDS: dict[str, DatasetKind] = {
    kind.name: kind for kind in (DIGITS, GLYPHS, FOLDER, VOC, ADE20K, PACKED)
}
