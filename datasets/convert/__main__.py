"""Convert other datasets, and your own videos, to the layouts that our readers know.

python -m datasets.convert refcoco --refer_path DIR --out DIR
python -m datasets.convert davis --davis_path DIR --out DIR
python -m datasets.convert folder --videos DIR --masks DIR --sentences FILE.csv --out DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.convert.davis import convert_davis
from datasets.convert.folder import convert_folder
from datasets.convert.refcoco import REFS, convert_refcoco
from util.errors import exit_on_user_error
from util.options import OptionParser, float_in, int_in

PROG = "python -m datasets.convert"


def refcoco_parser() -> OptionParser:
    parser = OptionParser(
        prog=f"{PROG} refcoco",
        description="Convert RefCOCO, RefCOCO+ and RefCOCOg to one image entry per sentence in COCO's JSON: "
        "OUT/<dataset>/instances_<dataset>_<split>.json. The images of COCO train2014 are not copied.",
    )
    parser.add_argument(
        "--refer_path",
        required=True,
        metavar="DIR",
        help="folder of the refer toolkit's data: <dataset>/instances.json and <dataset>/refs(unc).p, "
        "for refcocog refs(umd).p",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder that gets a new folder per dataset")
    parser.add_argument("--dataset", nargs="+", choices=list(REFS), default=list(REFS), help="which of them")
    return parser


def davis_parser() -> OptionParser:
    parser = OptionParser(
        prog=f"{PROG} davis",
        description="Convert Ref-DAVIS17 to the layout of Ref-YouTube-VOS: OUT/train, OUT/valid and "
        "OUT/meta_expressions. Images are hard links, or copies where the disk has none.",
    )
    parser.add_argument(
        "--davis_path", required=True, metavar="DIR", help="folder of DAVIS-2017-Unsupervised-trainval-480p's DAVIS"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder that gets the three new folders")
    parser.add_argument(
        "--semantics", metavar="FILE", help="categories of the objects; by default davis_semantics.json in DIR or DAVIS"
    )
    parser.add_argument(
        "--text_annotations",
        metavar="DIR",
        help="folder of Davis17_annot1.txt and its like; by default davis_text_annotations in DIR or DAVIS",
    )
    return parser


def folder_parser() -> OptionParser:
    parser = OptionParser(
        prog=f"{PROG} folder",
        description="Convert your own videos to MeViS's layout: OUT/train and OUT/valid_u. Frames become 00000.jpg, "
        "00001.jpg, … in the order of their names; JPEG images are hard links, anything else is encoded at quality 95.",
    )
    parser.add_argument(
        "--videos", required=True, metavar="DIR", help="folder of video files, or of a folder of images per video"
    )
    parser.add_argument(
        "--masks",
        required=True,
        metavar="DIR",
        help="<video>/<frame>.png, palette or grey, of object numbers; or <video>/<object>/<frame>.png of 0 and 255, "
        "where a missing file is an absent object. A mask belongs to the image of its name; for a video file masks "
        "sorted by name belong to the frames in order, so there must be one for every frame",
    )
    parser.add_argument(
        "--sentences",
        required=True,
        metavar="FILE",
        help="CSV in UTF-8 with the columns video, objects (numbers separated by spaces or ';', empty for no target), "
        "sentence, and perhaps split (train or valid_u)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder that gets the new folders")
    parser.add_argument(
        "--val_share", type=float_in(0, 1), default=0.1, help="share of the videos for valid_u without a column split"
    )
    parser.add_argument("--seed", type=int_in(0), default=0, help="of the draw of those videos")
    return parser


PARSERS = {"refcoco": refcoco_parser, "davis": davis_parser, "folder": folder_parser}


def main(args: Sequence[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    chooser = argparse.ArgumentParser(
        prog=PROG, description="Convert a dataset.", epilog=f"{PROG} WHAT --help lists the options of each."
    )
    chooser.add_argument("what", choices=PARSERS)
    what = chooser.parse_args(args[:1]).what
    parser = PARSERS[what]()
    options = parser.parse_args(args[1:])
    out = Path(options.out)
    with exit_on_user_error(parser.prog):
        if what == "refcoco":
            convert_refcoco(Path(options.refer_path), out, options.dataset)
        elif what == "davis":
            semantics = Path(options.semantics) if options.semantics else None
            texts = Path(options.text_annotations) if options.text_annotations else None
            convert_davis(Path(options.davis_path), out, semantics, texts)
        else:
            convert_folder(
                Path(options.videos),
                Path(options.masks),
                Path(options.sentences),
                out,
                val_share=options.val_share,
                seed=options.seed,
            )


if __name__ == "__main__":
    main()
