"""Private names of other libraries that P²O touches, each with what it is for; a test fails by name when one moves.

A name is private where it begins with an underscore, or where a library's documentation does not have it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrivateName:
    """One name.

    Args:
        owner: where it belongs: a module, or a class in one after a colon.
        purpose: what P²O does with it.
        set_by_code: whether the owner's code sets it on its instances, so that the class does not have it.
    """

    owner: str
    name: str
    purpose: str
    set_by_code: bool = False


GRPO = "trl.trainer.grpo_trainer:GRPOTrainer"
TRAINER = "transformers:Trainer"
GENERATION = "trl.generation.vllm_generation:VLLMGeneration"

PRIVATE_NAMES = [
    # Hooks that `P2OTrainer` overrides.
    PrivateName(GRPO, "_generate", "generates from T(x, z) and hands back the tokens of x"),
    PrivateName(GRPO, "_generate_single_turn", "one completion a row: a group has several prompts"),
    PrivateName(GRPO, "_tool_call_loop", "turns that all processes take together; conversations of the prompt phase"),
    PrivateName(GRPO, "_generate_and_score_completions", "where a batch begins, is mined and distilled"),
    PrivateName(GRPO, "_calculate_rewards", "rewards by function, for mining; failures that all processes share"),
    PrivateName(GRPO, "_compute_loss", "leaves rollouts without advantage out of its pass"),
    PrivateName(GRPO, "_get_per_token_logps_and_entropies", "the pass that says log π(y|x), which the mask needs"),
    PrivateName(GRPO, "_get_train_sampler", "an order that depends on the epoch alone, and a memory of it"),
    PrivateName(GRPO, "_save_checkpoint", "checkpoints that are complete or absent, with the state of P²O"),
    PrivateName(TRAINER, "_get_output_dir", "the staging directory while a checkpoint is written"),
    PrivateName(TRAINER, "_push_from_checkpoint", "no upload of a directory that will be renamed"),
    PrivateName(GRPO, "_tag_names", "tags of the model card"),
    PrivateName(GRPO, "_name", "the method in the model card"),
    PrivateName(GRPO, "_paper", "the paper in the model card"),
    # What it reads and calls.
    PrivateName(GRPO, "_tokenize_prompts", "tokens of T(x, z) and x, as they are generated from"),
    PrivateName(GRPO, "_tokenizer", "the tokenizer, of a processor too", set_by_code=True),
    PrivateName(GRPO, "_metrics", "metrics of P²O beside TRL's", set_by_code=True),
    PrivateName(GRPO, "_logs", "prompts and completions for callbacks; templates in TRL's table", set_by_code=True),
    PrivateName(GRPO, "_pending_extra_logs", "forgotten after a prompt phase", set_by_code=True),
    PrivateName(GRPO, "_pending_metrics", "forgotten after a prompt phase", set_by_code=True),
    PrivateName(GRPO, "_step", "the place within an epoch and within a generation batch", set_by_code=True),
    PrivateName(GRPO, "_buffered_inputs", "rollouts still to be trained on, for a checkpoint", set_by_code=True),
    PrivateName(GRPO, "_entropy_bonus_enabled", "whether rollouts without advantage matter", set_by_code=True),
    PrivateName(GRPO, "_last_loaded_step", "weights that change without a step reach vLLM, too", set_by_code=True),
    PrivateName(GRPO, "_standalone_tools", "tools of the prompt phase", set_by_code=True),
    PrivateName(GRPO, "_sync_tool_dicts", "tools of each row of the prompt phase", set_by_code=True),
    PrivateName(GRPO, "_async_tool_dicts", "tools of each row of the prompt phase", set_by_code=True),
    PrivateName(GRPO, "_batch_environments", "environments of each row, for tokens and tools", set_by_code=True),
    # vLLM as TRL drives it.
    PrivateName("trl.trainer.grpo_trainer", "VLLMGeneration", "replaced by a backend that works on a CPU"),
    PrivateName(GENERATION, "_init_vllm", "a server whose weights travel in a file"),
    PrivateName(GENERATION, "_iter_named_params", "weights under their checkpoint's names, adapters merged"),
    PrivateName(GENERATION, "_llm_weights_sleeping", "a sleeping engine is woken for weights", set_by_code=True),
    PrivateName("trl.generation.vllm_client:VLLMClient", "_post", "tells a server to load weights from a file"),
    PrivateName("torch:Tensor", "_version", "sees that weights were written to"),
    # Answers.
    PrivateName("sympy:Float", "_prec", "whether a number is known to enough digits to be compared"),
]
