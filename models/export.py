"""Write the weights of a training run for others to use: a folder, or the original's weight file.

    python -m models.export --run runs/mevis --out flowrvs-mevis --checkpoint best --vae_ckpt runs/mask_vae
    python -m models.export --run runs/mevis --out dit.pth --format reference

The folder holds all networks and a model card. It loads with ``FlowRVS.from_pretrained`` or as ``--wan_path``.
"""

from pathlib import Path

from util.errors import UserError, exit_on_user_error, interruptible_imports
from util.flags import DTYPE_NAMES
from util.options import OptionParser
from util.run_folder import LATEST, find_trained

PROGRAM = "python -m models.export"
FORMATS = ("pipeline", "reference")


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Write the weights of a training run for others to use.")
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder, the --output_dir of main.py")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="new folder; for --format reference a new .pth file"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="pipeline",
        help="a folder with all networks (pipeline), or the original's weight file (reference)",
    )  # fmt: skip
    parser.add_argument("--checkpoint", default=LATEST, metavar="NAME", help="latest, best or a step: step_0001000")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="EMA weights or raw weights")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="fp32", help="number format of the written weights")
    parser.add_argument("--vae_ckpt", metavar="PATH", help="tuned VAE weights; by default those that the run was given")
    parser.add_argument("--wan_path", metavar="PATH", help="folder of the other networks; by default that of the run")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        with interruptible_imports(PROGRAM):
            from models.export_run import export_pipeline, export_reference  # noqa: PLC0415, heavy
            from util.device import DTYPES  # noqa: PLC0415, heavy

        trained = find_trained(Path(options.run), options.checkpoint, options.weights == "ema")
        out, dtype = Path(options.out), DTYPES[options.dtype]
        if options.format == "pipeline":
            export_pipeline(trained, out, options.wan_path, options.vae_ckpt, dtype)
        elif options.wan_path or options.vae_ckpt:
            raise UserError(
                "--wan_path, --vae_ckpt: --format reference writes only the network that was trained; leave them out"
            )
        else:
            export_reference(trained, out, dtype)
        print(f"Wrote {out}: {options.weights} weights of {trained.checkpoint}, step {trained.step}.")


if __name__ == "__main__":
    main()
