"""Mistaken commands: each ends with 2 and one line, and makes and deletes nothing."""

import shlex

import pytest

MERGE = "merge --config merge/ties --config.base=base --config.experts=e1,e2"
TIES = f"{MERGE} --config.output=out"
PLAN = "plan --config plan/palm_64b --count"
TRAIN = "train --config train/pretrain --workdir w"
EVALUATE = "evaluate --config evaluate/miniworld --workdir w"
SWEEP = "sweep --config scaling_curves/smoke --workdir w"

LORA = "merge --config merge/ties --config.base=base --config.output=o --config.experts"
EXTRACT = "extract --config extract/lora --config.model=e1 --config.output=o"
FISHER = "merge --config merge/fisher --config.experts=e1,e2 --config.output=out"
COLLECT = "collect --config collect/expert:sentiment --workdir w"

MISTAKES = [
    # Commands and options.
    ("swep", "unknown command 'swep': did you mean sweep"),
    ("--hepl", "unknown argument '--hepl': did you mean --help"),
    ("merge verify", "unknown argument of merging merge 'verify'"),
    ("merge", "merging merge needs --config"),
    ("merge --output x", "merging merge needs --config"),
    ("merge --manifest gone.json", "--manifest goes with --output"),
    ("merge --manifest gone.json --output x", "there is no manifest at gone.json"),
    ("merge --manifest file --output x", "file is no manifest"),
    ("merge --manifest file --output x --method_file", "expected one argument"),
    ("merge --config merge/ties --method_file mine.py", "merging merge needs --conf"),
    (
        "merge --config merge/average --config.experts=e1,e2 "
        f"--config.output={'o' * 300}",
        "File name too long",
    ),
    ("merge --manifest s3://b/m.json --output x", "s3:// is not supported here"),
    ("verify", "required: DIR; see `merging verify --help`"),
    ("verify gone", "there is no checkpoint at gone"),
    ("verify base", "there is no manifest at base/manifest.json"),
    ("verify s3://b/x", "s3:// is not supported here"),
    ("inspect", "required: MODEL; see `merging inspect --help`"),
    ("inspect gone", "there is no checkpoint at gone"),
    ("inspect base", "base has no manifest.json, so nothing tells how it was made"),
    ("inspect base --base gone", "there is no checkpoint at gone"),
    ("inspect base --base lora", "share no leaf of one shape"),
    ("inspect base --out s3://b/x", "argument --out: path s3://b/x"),
    ("train", "required: --config"),
    ("collect", "required: --config"),
    (COLLECT, "name the checkpoint to gather statistics of"),
    (f"{COLLECT} --config.checkpoint=e1 --config.statistics=grams", "mean gram"),
    (f"{COLLECT} --config.checkpoint=gone", "there is no checkpoint at gone"),
    (f"{COLLECT} --config.checkpoint=e1", "e1 holds no config.json"),
    (FISHER, "fisher needs statistics of every expert, and there are none of e1, e2"),
    (f"{FISHER} --config.statistics=e1=e1", "there are none of e2: gather them by"),
    (f"{FISHER} --config.statistics=e1=e1,e2=gone", "no checkpoint at gone"),
    (f"{FISHER} --config.statistics=e1=e1,e2=e2,e3=e1", "e3, which is no expert"),
    (f"{FISHER} --config.method.floor=-1", "floor must be positive, not -1"),
    (f"{TIES} --config.statistics=e1=e1", "no method uses them: leave them out"),
    (
        "plan --config plan/palm_64b --topology v5p:4x4x8 --count "
        "--config.method.name=fisher",
        "fisher",
    ),
    ("sweep --config scaling_curves/smoke --shard 3/3", "the first is 0/4"),
    ("sweep --config scaling_curves/smoke --runner slurm", "invalid choice: 'slurm'"),
    (f"{SWEEP} --workdir v", "--workdir: give an option once"),
    (f"{TIES} --config merge/dare", "--config: give an option once"),
    (f"{TIES} --config.experts=e2", "--config.experts is given twice"),
    (f"{TIES} --config.rules=a=>base --config.rules=b=>base", "rules is given twice"),
    ("plan --config plan/palm_64b", "required: --topology"),
    ("methods --fiel x", "did you mean --file"),
    ("methods --file gone.py", "gone.py: there is no file of methods"),
    ("methods --file mine.py", "mine.py registers no new method"),
    ("report", "required: --workdir"),
    ("report --workdir gone", "cannot read result rows of gone"),
    ("report --workdir s3://b/x", "argument --workdir: path s3://b/x: s3:// is not"),
    ("report --workdir base --out s3://b/x", "argument --out: path s3://b/x"),
    ("report --workdir base --gate none", "'none' is no number from 0, such as 2"),
    ("report --workdir base --gate -1", "'-1' is no number from 0, such as 2"),
    ("report --workdir base --config.a=b", "merging report reads no config"),
    ("status --workdir gone", "gone holds no sweep"),
    ("status --workdir s3://b/x", "s3:// is not supported here"),
    ("tasks", "required: action"),
    ("tasks show", "needs the name of a dataset"),
    ("tasks show cop", "did you mean copa"),
    ("tasks list copa", "takes no dataset"),
    ("tasks prepare", "needs --data_dir DIR"),
    ("tasks prepare --data_dir gs://b/x", "argument --data_dir: path gs://b/x"),
    ("tasks show copa --data_dir gone", "there is no such directory"),
    ("evaluate", "merging evaluate needs --config"),
    ("evaluate --compare one", "--compare: expected 2 arguments"),
    ("evaluate --compare gone e1", "gone holds no finished evaluation"),
    ("evaluate --compare s3://b/x e1", "s3:// is not supported here"),
    ("evaluate --compare a b --workdir w", "--compare A B stands alone"),
    ("evaluate --config evaluate/miniworld --out d", "--out goes with --compare"),
    # Configs that are none.
    ("merge --config merge/tise", "did you mean merge/ties"),
    ("merge --config gs://b/c.py", "--config gs://b/c.py: gs:// is not supported"),
    ("merge --config gone.py", "did you mean mine.py"),
    ("merge --config nowhere/gone.py", "there is no file nowhere/gone.py"),
    ("merge --config file", "a config is a Python file"),
    ("merge --config mine.py:arg", "mine.py takes no argument"),
    ("train --config train/expert", "needs an argument"),
    ("merge --config empty.py", "no config of merging merge: it has no experts"),
    ("merge --config train/pretrain", "it has no experts, method; --config merge/ties"),
    ("merge --config scaling_curves/tiny", "no config of merging merge"),
    ("merge --config no_method.py", "it has no method; --config merge/ties is one"),
    ("merge --config no_rules.py", "'rulez': did you mean rules"),
    ("merge --config text_experts.py", "experts = 'e1' must be a tuple"),
    ("merge --config text_seed.py", "seed = 'one' must be a number"),
    ("merge --config word_method.py", "method = 'ties' must be a section"),
    ("merge --config no_output.py", "name the folder to make"),
    ("convert --config merge/ties", "no config of merging convert: it has no input"),
    ("convert --config convert_more.py", "key of a config of merging convert 'chunks'"),
    ("convert --config convert_less.py", "it has no input"),
    ("train --config merge/ties --workdir w", "no config of merging train"),
    ("train --config empty.py --workdir w", "--config train/pretrain is one"),
    ("train --config steps.py --workdir w", "did you mean hyperparameters.steps"),
    ("train --config no_steps.py --workdir w", "it has no hyperparameters"),
    ("evaluate --config train/pretrain --workdir w", "it has no checkpoint"),
    ("evaluate --config split.py --workdir w", "'splitt': did you mean split"),
    ("evaluate --config label.py --workdir w", "'labels.nmae'"),
    ("evaluate --config no_suite.py --workdir w", "it has no suite"),
    ("sweep --config merge/ties --workdir w", "no config of merging sweep"),
    ("sweep --config train/pretrain --workdir w", "no config of merging sweep"),
    ("sweep --config grid.py --workdir w", "'sedes': did you mean seeds"),
    ("sweep --config phase.py --workdir w", "'expert.stps'"),
    ("sweep --config no_data.py --workdir w", "it has no bases"),
    ("plan --config plan.py --topology v5e:4x4 --count", "'storage.rd'"),
    ("plan --config plan_less.py --topology v5e:4x4 --count", "it has no vocab_size"),
    ("plan --config empty.py --topology v5e:4x4 --count", "this one is none of them"),
    # Merges.
    (MERGE, "name the folder to make"),
    (f"{TIES} --config.method.weights=0.7", "weights must be numbers, one per expert"),
    (f"{TIES} --config.method.weights=1,2,3", "3 weights for 2 experts"),
    (f"{TIES} --config.method.density=7", "density must be in (0, 1]"),
    (f"{TIES} --config.method.scale=nan", "scale=nan: expected a number"),
    (f"{TIES} --config.method.scale=inf", "scale=inf: expected a number"),
    (f"{TIES} --config.dtype=float65", "did you mean float64"),
    (f"{TIES} --config.format=torch", "unknown format 'torch'"),
    (f"{TIES} --config.memory_budget=lots", "'lots' is no size"),
    (f"{TIES} --config.memory_budget={'9' * 400}", "… is no size"),
    (f"{TIES} --config.shard_size=0", "'0' is no size"),
    (f"{TIES} --config.auxiliary_files=/nonexist", "auxiliary_files /nonexist"),
    (f"{TIES} --config.auxiliary_files=e9", "did you mean e2 or e1"),
    (f"{TIES} --config.rules=x", "'x' is no rule"),
    (f"{TIES} --config.rules=nomatch=>base", "rules that match no leaf: nomatch"),
    (f"{TIES} --config.rules=(a|a)*=>base", "which is not taken here"),
    (f"{TIES} --config.rules=w=>ties(density={'9' * 400})", "that no method takes"),
    (f"{TIES} --config.merge_yaml=gone.yml", "'merge_yaml'"),
    ("merge --config merge/mergekit --config.output=out", "name the mergekit YAML"),
    (f"{MERGE} --config.output=base", "the output base exists"),
    (f"{MERGE} --config.output=base/in", "lies in the input base"),
    (f"{MERGE} --config.output=s3://b/o", "output s3://b/o: s3:// is not supported"),
    (f"{MERGE} --config.output=file/o", "cannot write file/o: "),
    (f"{MERGE} --config.output=/proc/none/o", "cannot write /proc/none/o: No such"),
    (
        "merge --config merge/ties --config.base=hdfs://b/x --config.experts=e1"
        " --config.output=out",
        "base hdfs://b/x: hdfs:// is not supported here; give a path of a mounted file"
        " system or in gs:// or s3://",
    ),
    (
        "merge --config merge/average --config.experts=e1,gone --config.output=out",
        "there is no checkpoint at gone",
    ),
    (
        "merge --config merge/average --config.experts=e1,lora --config.output=out",
        "l.0.lora_A: in 'lora', but not in 'e1'; l.1.lora_A",
    ),
    (
        "merge --config merge/method --config.base=base --config.experts=e1"
        " --config.output=out",
        "unknown method ''",
    ),
    (
        "merge --config merge/mergekit --config.merge_yaml=gone.yml --config.output=o",
        "gone.yml is no file",
    ),
    ("merge --config gone.yml --config.output=o", "gone.yml is no file"),
    ("merge --config a.yml --config.merge_yaml=b.yml", "merge_yaml b.yml: leave one"),
    ("merge mergekit.yml out", "write --config mergekit.yml."),
    ("sweep --config gone.yaml", "a config is a Python file"),
    # Conversions.
    ("convert --config convert/to_orbax", "name the checkpoint (input)"),
    (
        "convert --config convert/to_orbax --config.input=base --config.output=out",
        "base holds no config.json",
    ),
    (
        "convert --config convert/to_orbax --config.input=base"
        " --config.output=gs://b/o",
        "output gs://b/o: gs:// is not supported",
    ),
    # Plans.
    (f"{PLAN} --topology v6e", "v6e takes a shape"),
    (f"{PLAN} --topology v7:2x2", "unknown chip 'v7'"),
    (f"{PLAN} --topology v6e:4x4 --slices none", "invalid int value"),
    (f"{PLAN} --topology v6e:4x4 --only training,grd", "did you mean grid"),
    (f"{PLAN} --topology v6e:4x4 --config.family=plam", "did you mean palm"),
    (
        "plan --config scaling_curves/palm --topology cpu:8 --config.experts_merged=9",
        "takes 2 to 8 experts",
    ),
    (f"{PLAN} --topology v6e:4x4 --config.method.weights=0.7", "one per expert"),
    # Trainings.
    ("train --config train/expert:sentiment --workdir w", "--config.start=DIR"),
    ("train --config train/pretrain --workdir s3://b/w", "path s3://b/w: s3:// is"),
    (
        "train --config train/pretrain --workdir file",
        "file is no folder; choose another",
    ),
    ("train --config train/pretrain --workdir base", "holds no training"),
    (f"{TRAIN} --config.size=9x", "did you mean 8x"),
    (f"{TRAIN} --config.suite=miniwrld", "did you mean miniworld"),
    (f"{TRAIN} --config.what=imbd --config.start=fresh", "did you mean imdb"),
    (f"{TRAIN} --config.start=gone", "there is no checkpoint at gone"),
    (f"{TRAIN} --config.start=base", "start base holds no config.json"),
    (f"{TRAIN} --config.start=az://b/x", "az:// is not supported"),
    (f"{TRAIN} --config.hyperparameters.batch_size=3", "does not divide over"),
    (f"{TRAIN} --config.param_dtype=float99", "param_dtype 'float99' is none of"),
    (f"{TRAIN} --config.mesh.fsdp=3", "give sizes whose product is that"),
    (f"{TRAIN} --config.length=-1", "length = -1 must be 0"),
    (f"{TRAIN} --config.data.documents=0", "needs 1 or more: documents=0"),
    (f"{TRAIN} --config.data.world_seed=-1", "needs 0 or more: world_seed=-1"),
    # Adapters.
    ("merge --config merge/average --config.experts=qa --config.output=out", "BASE+qa"),
    (f"{LORA}=other", "does not fit the base base: c.weight is not there"),
    (f"{LORA}=qa,dora", "sets what changes the sum θ₀ + s·BA, and is not followed"),
    (f"{LORA}=no_rank", "r must be a whole number from 1, not 0"),
    (f"{LORA}=base+gone", "there is no checkpoint at base+gone"),
    (
        f"{LORA}=base+e1",
        "e1 is no LoRA adapter, as PEFT saves one: it has no adapter_config",
    ),
    (f"{LORA}=qa --config.space=knot", "unknown space 'knot': did you mean knots"),
    (f"{LORA}=qa,e1 --config.space=knots", "merges LoRA adapters, and e1 is none"),
    (f"{LORA}=qa,strong --config.space=factors", "s = 3 in 'strong'"),
    (f"{LORA}=qa --config.space=knots --config.format=orbax", "leave it out"),
    ("extract --config extract/lora", "name the base, the model and the folder"),
    (
        f"{EXTRACT} --config.base=base --config.rank=0",
        "give a rank, or the share of energy to keep",
    ),
    (
        f"{EXTRACT} --config.base=base --config.energy=2.0",
        "energy must be a share in [0, 1)",
    ),
    (
        f"{EXTRACT} --config.base=base --config.leaves=zz",
        "leaves: zz fits no matrix MODULE.weight",
    ),
    (f"{EXTRACT} --config.base=base --config.dtype=int8", "unknown dtype 'int8'"),
    (f"{EXTRACT} --config.base=gone", "there is no checkpoint at gone"),
    # Evaluations.
    (EVALUATE, "no checkpoint to evaluate"),
    (f"{EVALUATE} --config.checkpoint=gone", "there is no checkpoint at gone"),
    (f"{EVALUATE} --config.checkpoint=base", "base holds no config.json"),
    (
        f"{EVALUATE} --config.checkpoint=base --config.tokenizer=gs://b/t",
        "tokenizer gs://b/t: gs:// is not supported",
    ),
    (f"{EVALUATE} --config.checkpoint=base --config.batch_size=0", "must be 1 or more"),
    (
        "evaluate --config evaluate/miniworld --workdir s3://b/w",
        "s3:// is not supported",
    ),
    # Sweeps.
    ("sweep --config scaling_curves/smoke --workdir s3://b/w", "path s3://b/w: s3://"),
    ("sweep --config scaling_curves/smoke --workdir base", "holds no sweep"),
    ("sweep --config scaling_curves/smoke --workdir file", "file is no folder; choose"),
    (f"{SWEEP} --config.sizes=9x", "did you mean 8x"),
    (f"{SWEEP} --config.methods=tise", "did you mean ties"),
    (f"{SWEEP} --config.experts_merged=99", "a merge takes 2 to 8 experts"),
    (f"{SWEEP} --config.scales.ties=x", "expected values like a number"),
    (
        "sweep --config resources.py --workdir w",
        "'GPU' is no NAME=NUMBER, such as CPU=4",
    ),
    (f"{SWEEP} --config.method_files=gone.py", "gone.py: there is no file of methods"),
    (f"{SWEEP} --config.method_files=gs://b/m.py", "method_files gs://b/m.py"),
    ("sweep --config smollm2/miniworld --workdir w", "is no folder with a checkpoint"),
]


@pytest.mark.parametrize(("command", "said"), MISTAKES)
def test_a_mistake_is_one_line_with_the_remedy_and_changes_nothing(
    run_here, place, contents, command, said
):
    before = contents(place)
    status, out, err = run_here(*shlex.split(command.replace("=>", "='=>'")))
    assert (status, out) == (2, ""), err
    assert err.startswith("merging: error: ") and said in err, err
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert contents(place) == before


def test_a_list_of_leaves_is_cut(run_here):
    experts = "--config.experts=e1,lora"
    _, _, err = run_here(
        "merge", "--config", "merge/average", experts, "--config.output=o"
    )
    assert "and 94 more. Merge models of one architecture." in err
    assert len(err) < 600
