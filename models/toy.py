"""Write the toy Wan folder: the layout and classes of Wan2.1-T2V-1.3B-Diffusers, sized for a CPU.

    python -m models.toy --out DIR [--seed 0] [--train_on TOY_MEVIS --vae_steps 3000]

With --train_on the VAE is trained to reconstruct the videos and masks of a toy MeViS; the DiT and the text encoder
stay random. Without it all weights are random: everything runs, but masks are meaningless.
"""

from pathlib import Path

from util.errors import exit_on_user_error, interruptible_imports
from util.options import OptionParser, int_in


def build_parser() -> OptionParser:
    parser = OptionParser(prog="python -m models.toy", description="Write a CPU-sized Wan folder.")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument("--seed", type=int_in(0), default=0, help="random seed of the weights")
    parser.add_argument("--train_on", metavar="DIR", help="train the VAE on this toy MeViS, see python -m datasets.toy")
    parser.add_argument("--vae_steps", type=int_in(1), default=3000, metavar="N", help="training steps of the VAE")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(arguments)
    with exit_on_user_error(parser.prog):
        with interruptible_imports(parser.prog):
            from models.toy_wan import write_toy_wan  # noqa: PLC0415, heavy: --help and refused flags answer without it

        train_on = Path(options.train_on) if options.train_on else None
        write_toy_wan(Path(options.out), options.seed, train_on, options.vae_steps)
        state = "a trained VAE and a random DiT" if train_on else "random weights"
        print(f"Wrote {options.out}: {state} (seed {options.seed}); masks are meaningless until main.py trains it.")


if __name__ == "__main__":
    main()
