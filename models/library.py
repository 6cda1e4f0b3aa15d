"""Lists every private name of a library that this project uses.

An upgrade may rename or remove such a name without notice. ``tests/models/test_library.py`` checks that each exists and
that no other is in use, so an upgrade fails there, with one message per name. Names outside ``diffusers``' documented
interface count as private too.
"""

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class LibraryName:
    """A private name.

    Attributes:
        module: where it is defined.
        name: of the class, function or constant; ``Class.attribute`` for one of a class.
        use: what this project needs it for.
    """

    module: str
    name: str
    use: str

    def exists(self) -> bool:
        """Whether the installed version of the library has it."""
        try:
            value = importlib.import_module(self.module)
            for attribute in self.name.split("."):
                value = getattr(value, attribute)
        except (ImportError, AttributeError):
            return False
        return True


_VAE = "diffusers.models.autoencoders.autoencoder_kl_wan"
_DISPATCH = "diffusers.models.attention_dispatch"
LIBRARY_NAMES = (
    LibraryName(_VAE, "WanCausalConv3d", "chunked passes count them; fast layers replace them"),
    LibraryName(_VAE, "WanResample", "fast layers replace it"),
    LibraryName(_VAE, "WanResidualBlock", "fast layers replace it"),
    LibraryName(_VAE, "WanRMS_norm", "fast layers replace it"),
    LibraryName(_VAE, "patchify", "chunked encoding"),
    LibraryName(_VAE, "unpatchify", "chunked decoding"),
    LibraryName("diffusers.models.autoencoders.vae", "DiagonalGaussianDistribution", "mean and deviation of latents"),
    LibraryName("diffusers.utils.accelerate_utils", "apply_forward_hook", "moves an offloaded VAE to its device"),
    LibraryName("diffusers.utils.constants", "DIFFUSERS_ATTN_BACKEND", "the user's choice of attention kernels"),
    LibraryName(_DISPATCH, "attention_backend", "tries an attention backend"),
    LibraryName("diffusers", "DiffusionPipeline._execution_device", "where FlowRVS runs under offloading"),
    LibraryName("diffusers", "DiffusionPipeline._optional_components", "FlowRVS may lack its text encoder"),
    LibraryName("diffusers", "WanTransformer3DModel._keep_in_fp32_modules", "modules that a cast leaves in float32"),
    LibraryName("torch.nn", "Module._apply", "keeps rotary tables from casts"),
    LibraryName("torch", "_dynamo.config.recompile_limit", "variants of the compiled VAE kernel"),
    LibraryName("torch", "UntypedStorage._new_shared", "batches in shared memory"),
    LibraryName("torch.utils._python_dispatch", "TorchDispatchMode", "counts live bytes for --dry_run"),
    LibraryName("torch.utils._pytree", "tree_leaves", "finds the tensors of an operation for --dry_run"),
    LibraryName("argparse", "_ActionsContainer", "type of what takes flags: a parser or a group of one"),
    LibraryName("argparse", "ArgumentParser._get_value", "types of values in a --config file"),
    LibraryName("argparse", "ArgumentParser._check_value", "choices of values in a --config file"),
    LibraryName("argparse", "HelpFormatter._get_help_string", "defaults in --help"),
)
# Attributes that a library sets on instances, by the class that has them.
INSTANCE_NAMES = {
    "diffusers WanCausalConv3d": ("_padding",),
    "torch.nn.Module": ("_forward_hooks", "_forward_pre_hooks"),
    "torch.UntypedStorage": ("_cdata",),
    "argparse.ArgumentParser": ("_actions", "_option_string_actions"),
}
