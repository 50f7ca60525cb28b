"""A checkpoint on tasks of lm-evaluation-harness, answered by this evaluator.

    pip install 'merging[lm-eval]'
    merging evaluate --config configs/evaluate/lm_eval.py \\
        --config.checkpoint=MODEL --config.tasks=hellaswag,arc_easy --workdir scores

Result: the harness's own files, results_TIME.json and samples_TASK_TIME.jsonl, under
WORKDIR/MODEL. Its tasks are fetched from the Hugging Face Hub unless `include_path`
names a folder with their YAML files and data. What is stopped begins anew.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.checkpoint = ""  # folder of the model
    config.tokenizer = ""  # folder of its tokenizer; the checkpoint's own
    config.tasks = ("",)  # names or YAML files of tasks, groups or tags
    config.include_path = ""  # a folder of further tasks
    config.num_fewshot = -1  # -1: as the task says
    config.limit = 0  # the first examples of each task; 0: all
    config.chat = False  # prompts in the tokenizer's chat template
    config.system_instruction = ""
    config.max_new_tokens = 0  # to generate at most; 0: as the task says
    config.samples = True  # write every prompt, answer and metric
    config.bootstrap_iters = 100_000  # for metrics without a formula for their error
    config.batch_size = 32
    config.context = 0  # tokens; 0: what the model's config says
    config.dtype = ""  # as the checkpoint's
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    return config
