"""Train FlowRVS.

    python main.py --config configs/mevis.yaml --wan_path Wan2.1-T2V-1.3B-Diffusers --output_dir runs/mevis
    python main.py --config configs/toy.yaml --output_dir runs/toy

--task flow trains the velocity field, --task mask_vae tunes the decoder to one mask channel.
"""

import argparse

from datasets.registry import NAMES
from datasets.sampling import SAMPLINGS
from engine.training.log import TRACKERS
from engine.training.optimizer import OPTIMIZERS
from engine.training.run import run
from models.objectives import OBJECTIVES
from util.device import DTYPES, device_name
from util.errors import did_you_mean, exit_on_user_error
from util.flags import MAX_BOX, MAX_SEED, MIN_BOX, add_dataset_flags, add_weight_flags
from util.options import OptionParser, float_in, int_in

PROGRAM = "main.py"
REMOVED_FLAGS = {
    "--eval": "use inference_mevis.py",
    "--start_epoch": "--resume knows where it stopped",
    "--ngpu": "start with torchrun",
    "--save_period": "use --save_steps",
    "--max_size": "use --reso_w",
    "--max_skip": "--sampling sparse has the original's distances",
    "--combined_dataset": "use --mixture",
    "--use_gradient_ckpt": "use --checkpoint_every: 1 every block, 2 every second, 0 none",
}


def weighted_name(text: str) -> tuple[str, float]:
    """``mevis=0.5`` to its parts; the weight is 1 where it is left out."""
    name, _, weight = text.partition("=")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(
            f"must name one of {', '.join(NAMES)}, got '{name}'{did_you_mean(name, NAMES)}"
        )
    return name, float_in(0, 100, exclusive=True)(weight or "1")


def build_parser() -> OptionParser:
    parser = OptionParser(prog=PROGRAM, description="Train FlowRVS.", removed=REMOVED_FLAGS)
    parser.add_argument("--task", choices=("flow", "mask_vae"), default="flow", help="what to train")
    parser.add_argument("--output_dir", default="runs/flowrvs", metavar="DIR", help="the run's folder")
    parser.add_argument("--resume", metavar="RUN", help="auto (this run's latest checkpoint), a run or a checkpoint")
    parser.add_argument(
        "--init_from", metavar="PATH", help="start a new run from weights: a run, a saved pipeline or a weight file"
    )
    parser.add_flag("--dry_run", default=False, help="check options and data, print steps and GPU memory, and end")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int_in(0, MAX_SEED), default=42, help="of every draw")
    add_weight_flags(parser)
    _add_data_flags(parser)
    _add_method_flags(parser)
    _add_optimizer_flags(parser)
    _add_frugality_flags(parser)
    _add_record_flags(parser)
    return parser


def _add_data_flags(parser: OptionParser) -> None:
    add_dataset_flags(parser)
    group = parser.add_argument_group("clips")
    group.add_argument("--dataset_file", choices=NAMES, default="mevis", help="what to train on")
    group.add_argument(
        "--mixture", nargs="+", type=weighted_name, metavar="NAME=WEIGHT",
        help="several datasets instead, each with how often an epoch visits its items: mevis=1 ytvos=0.5",
    )  # fmt: skip
    group.add_argument("--num_frames", type=int_in(1), default=17, help="frames per clip, 4n+1")
    group.add_argument(
        "--reso_h", type=int_in(MIN_BOX, MAX_BOX), metavar="PIXELS", help="short side of clips; by default the model's"
    )
    group.add_argument(
        "--reso_w",
        type=int_in(MIN_BOX, MAX_BOX),
        metavar="PIXELS",
        help="longest side of clips; by default the model's",
    )
    group.add_argument("--sampling", choices=SAMPLINGS, default="sparse", help="how frames are chosen")
    parser.add_flag("--augm_resize", default=True, help="crop every second clip")
    group.add_argument("--flip_prob", type=float_in(0, 1), default=0.5, help="mirror clips, left and right swapped")
    group.add_argument("--jitter", type=float_in(0, 1), default=0.0, help="of brightness, contrast and saturation")
    group.add_argument(
        "--no_target_prob", type=float_in(0, 1), default=1.0, help="keep sentences that mean nothing in their video"
    )
    group.add_argument("--batch_size", type=int_in(1), default=1, help="clips per step")
    group.add_argument("--num_workers", type=int_in(0), default=4, help="processes that read clips")


def _add_method_flags(parser: OptionParser) -> None:
    parser.add_argument("--objective", choices=OBJECTIVES, default="flow", help="flow, or a baseline of the paper")
    parser.add_argument(
        "--timestep_beta", type=float_in(-100, 100), default=0.0,
        help="lean the timesteps towards the video end (above 0) or the mask end (below 0)",
    )  # fmt: skip
    parser.add_argument("--bbs_prob", type=float_in(0, 1), default=0.5, help="boundary-biased sampling; 0 is uniform")
    parser.add_flag("--use_spa", default=True, help="start-point augmentation: sample the video's posterior")
    parser.add_flag("--use_dvi", default=True, help="direct video injection: 2C input channels")
    parser.add_argument(
        "--lora_rank", type=int_in(0, 1024), default=0, help="train adapters of this rank; 0 trains all"
    )
    parser.add_argument("--crop", type=int_in(0), default=256, help="mask_vae: side of the crops in pixels; 0 is whole")
    parser.add_argument("--latent_noise", type=float_in(0), default=0.0, help="mask_vae: noise on the mask latents")


def _add_optimizer_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="adamw", help="adamw8bit needs torchao or bitsandbytes"
    )
    group.add_argument("--accumulate", type=int_in(1), default=1, help="batches per step of each process")
    group.add_argument("--lr", type=float_in(0, exclusive=True), default=5e-5, help="peak learning rate")
    group.add_argument("--weight_decay", type=float_in(0), default=5e-4, help="of matrices and kernels")
    group.add_argument(
        "--lr_schedule", choices=("multistep", "cosine", "constant"), default="multistep", help="after warm-up"
    )
    group.add_argument("--lr_drop", type=int_in(1), default=30, help="multistep: times 0.9 after so many epochs")
    group.add_argument("--warmup_steps", type=int_in(0), default=0, help="of linear warm-up")
    group.add_argument("--epochs", type=int_in(1), default=50, help="passes over the data")
    group.add_argument("--max_steps", type=int_in(1), help="instead of --epochs")
    group.add_argument("--clip_max_norm", type=float_in(0), default=1.0, help="of the gradient; 0 does not clip")
    group.add_argument("--ema_decay", type=float_in(0, 1), default=0.9999, help="of the averaged weights")
    group.add_argument(
        "--max_bad_steps", type=int_in(1), default=10, help="steps in a row without a finite gradient that end the run"
    )


def _add_frugality_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("memory and speed")
    parser.add_flag("--amp", default=None, help="bf16 autocast over the weights; by default on CUDA only")
    group.add_argument(
        "--weights_dtype", choices=tuple(DTYPES), default="fp32", help="bf16 halves them and rounds stochastically"
    )
    group.add_argument(
        "--checkpoint_every", type=int_in(0), default=1, metavar="N",
        help="recompute the activations of every n-th block in the backward pass; 0 keeps all",
    )  # fmt: skip
    parser.add_flag("--compile", default=False, help="compile the blocks of the DiT; minutes at the start")
    parser.add_flag("--fsdp", default=False, help="shard weights, gradients and moments over torchrun's GPUs")
    group.add_argument(
        "--ema_device", choices=("cpu", "cuda"), help="where the average lives; by default with the weights"
    )
    group.add_argument(
        "--text_cache",
        metavar="DIR",
        help="of embedded captions, may be shared by runs; by default in the run's folder",
    )
    group.add_argument(
        "--latent_cache", metavar="DIR",
        help="keep latents here instead of encoding each time; needs --sampling dense --no-augm_resize --flip_prob 0",
    )  # fmt: skip


def _add_record_flags(parser: OptionParser) -> None:
    group = parser.add_argument_group("records")
    group.add_argument("--save_steps", type=int_in(1), default=1000, help="steps between checkpoints")
    group.add_argument("--keep_last", type=int_in(1), default=3, help="checkpoints that stay")
    group.add_argument("--print_freq", type=int_in(1), default=100, help="steps between log lines")
    group.add_argument(
        "--eval_steps", type=int_in(0), default=0, help="steps between validations on valid_u; 0 is never"
    )
    group.add_argument("--report_to", choices=TRACKERS, default="tensorboard", help="where curves and pictures go")


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with exit_on_user_error(PROGRAM):
        run(options)


if __name__ == "__main__":
    main()
