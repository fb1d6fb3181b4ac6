"""The texts of `--help`, beside the words of each command: the whole, and examples by command."""

from __future__ import annotations

DESCRIPTION = """\
Branch, Adapt, Route: add a capability to a post-trained model without retraining it.

A recipe (YAML) goes from a dense Hugging Face checkpoint to a mixture of experts that transformers
and vLLM load: each domain expert is trained beside the frozen anchor, all are merged, and a small
router learns to weigh them.

  megatron-bar init toy                       writes toy.yaml: the whole of it, small
  megatron-bar run toy.yaml                   ... in minutes on a laptop
  megatron-bar run recipe.yaml route.fraction=0.1 seed=1      any key can be overridden
"""
EXAMPLES = {
    "init": """\
Copies an example that this package carries, and a site.yaml that describes a cluster. Without a
name it tells what there is. Nothing is overwritten.

  megatron-bar init toy                       the whole of it, small
  megatron-bar init law mine                  a domain of your own; into the folder mine
""",
    "doctor": """\
A line for each part: what is here, what is missing and how to install it, what is known to be bad.
The status is 1 where something is missing that every run needs.

  megatron-bar doctor
  megatron-bar doctor --json > machine.json
""",
    "run": """\
Runs what is missing or stale, and what lies downstream of that. A second run does nothing. All is
checked before; a question is asked before hours of finished training are replaced.

  megatron-bar run examples/toy.yaml
  megatron-bar run examples/toy.yaml seed=1 name=toy-1
  rm -r runs/toy/math; megatron-bar run examples/toy.yaml     does the math expert again
""",
    "compare": """\
RUN is a run's folder, or one of several runs, as a recipe with systems makes. Runs that differ in
nothing but the seed are one line, with the standard deviation over the seeds.

  megatron-bar run examples/toy-compare.yaml
  megatron-bar compare runs/toy-compare runs/toy-compare-1 --json systems.json
""",
    "data prepare": """\
Tokenizes the sources of a recipe's training stages into its run's folder, where the stages find
them; they would do it themselves, but for datasets of the hub, which only this downloads. On a
cluster it spares the GPUs the wait: any machine that sees the folder will do. What is there stays;
what was cut short goes on.

  megatron-bar data prepare recipe.yaml                       all stages
  megatron-bar data prepare recipe.yaml math/midtrain --processes 64
""",
    "data show": """\
Prints what a stage reads at a step, document by document, with the tokens that carry loss in green.

  megatron-bar data show recipe.yaml math/sft
  megatron-bar data show recipe.yaml math/midtrain --step 1200 --items 10
""",
    "upgrade": """\
Replaces, adds or drops experts: merges and routes again, exports and measures, and leaves all else
as it is. BRANCH is a branch's checkpoint, the folder of a domain in another run, or a recipe whose
domain NAME is then trained here. What stood before stays in RUN/before until the next upgrade.

  megatron-bar upgrade runs/toy --replace code=runs/better/code
  megatron-bar upgrade runs/toy --add law=branches/law 'domains.law.routing=[{path: law.jsonl}]'
  megatron-bar upgrade runs/toy --add law=law.yaml --drop safety
  megatron-bar upgrade runs/toy                 goes on with one that was cut short
  megatron-bar upgrade runs/toy --undo          back to what stood before
""",
    "stage": """\
For job scripts: every rank runs this, with the environment torchrun gives it.

  torchrun --nproc-per-node 8 -m megatron_bar stage runs/bar-7b math/sft
""",
    "plan": """\
Nothing is run. What is assumed stands below the tables.

  megatron-bar plan examples/bar-7b.yaml --plot growth.png
  megatron-bar plan recipe.yaml layout.processes=256 --site mycluster/site.yaml
  megatron-bar plan recipe.yaml --layouts math/midtrain --memory 72
  megatron-bar plan recipe.yaml --simulate --nodes 16 --queue-wait 60 --time-limit 24
""",
    "rehearse": """\
Takes the recipe through all of its stages, in real ranks, with a model of two narrow layers that is
made like the anchor, and a few steps a stage; then loads the export with transformers, compares,
talks to it and generates. The recipe's own data, tokenizer, templates, verifiers and number types
are used; of its layouts as much as there are processes for. Nothing of the real run is touched.

  megatron-bar rehearse recipe.yaml
  megatron-bar rehearse recipe.yaml layout.tensor=4 --keep rehearsed
  megatron-bar rehearse examples/bar-7b.yaml --tokenizer OLMo-2-1124-7B     models that aren't here
""",
    "verify-data": """\
Scores the reference answer of every prompt of RLVR and every held-out item, which has to earn 1, an
empty answer and a wrong one, which have to earn 0. What doesn't is listed. No model is asked.

  megatron-bar verify-data recipe.yaml
  megatron-bar verify-data recipe.yaml domains.law.rlvr.data.0.verifier=law.py:score
""",
    "submit": """\
Queues a job for each stage that isn't done, with dependencies; branches run side by side. A second
submit goes on from what stands, and leaves alone what is queued.

  megatron-bar submit recipe.yaml --dry-run                   prints every script
  megatron-bar submit recipe.yaml --write                     writes them, for sbatch by hand
  megatron-bar submit recipe.yaml --site mycluster/site.yaml
  megatron-bar submit recipe.yaml --only math                 a domain, a stage or a pattern
  megatron-bar submit recipe.yaml --from merged               that stage and all downstream
  megatron-bar submit recipe.yaml --rehearse                  a short run first, with a small model
""",
    "status": """\
  megatron-bar status runs/bar-7b
""",
    "watch": """\
The graph of stages with their states, the curves, the time left, GPU-hours: one HTML file, which
needs no server and no network. A browser that has it open shows it anew by itself, also on a phone.
It ends when the run ends, or when nothing has been at work for a minute.

  megatron-bar watch runs/toy
  megatron-bar watch runs/bar-7b --site mycluster/site.yaml --every 120
  megatron-bar watch runs/toy --once --out toy-now.html
""",
    "cancel": """\
What needs a cancelled stage is cancelled with it; the others go on.

  megatron-bar cancel runs/bar-7b --only math
""",
    "import": """\
Killed or interrupted, the same command goes on where it was. So do export, branch and merge.

  megatron-bar import OLMo-2-1124-7B-Instruct checkpoints/anchor
""",
    "export": """\
  megatron-bar export runs/toy/routed/checkpoint my-model --dtype bfloat16
  megatron-bar export runs/toy/routed/checkpoint cheaper --active 3      of five experts
  megatron-bar export runs/toy/math/sft/resume/100 half-way   of a stage that was cut short
""",
    "branch": """\
  megatron-bar branch --anchor checkpoints/anchor --pretrained checkpoints/pretrained \\
      --name math --out checkpoints/math
""",
    "merge": """\
Shared parameters become the mean, in fp32, over the branches and the anchor.

  megatron-bar merge --anchor checkpoints/anchor --out checkpoints/merged \\
      checkpoints/math checkpoints/code
  ... --average branches                        the mean leaves the anchor out
  ... --weights 'embeddings=math:3,code:1'      by group; relative to their sum
  ... --rule ties --density 0.2                 a rule over the changes; docs/merging.md

A merged model in place of the branches, alone or with branches to add to it:

  megatron-bar merge checkpoints/merged checkpoints/law --out checkpoints/with-law
  megatron-bar merge checkpoints/merged --experts anchor,code --out checkpoints/no-math

It counts in the mean for the models it was merged from: adding one to n gives
(n * merged + new) / (n + 1). What a dropped or replaced expert's branch brought into that
mean stays there.
""",
    "evaluate": """\
In-process, in any layout: answers to a recipe's tasks, or to items of a JSONL file, are scored by
its verifiers, with 95 % intervals. Items are conversations; docs/evaluation.md tells their columns.

  megatron-bar evaluate runs/toy/routed/checkpoint --recipe runs/toy/recipe.yaml
  megatron-bar evaluate checkpoints/merged --task gsm8k=gsm8k_test.jsonl:math max_new_tokens=1024 \\
      dtype=bfloat16 layout.processes=8 layout.tensor=2
  ... temperature=0.7 samples=8 --out scores/merged

Through lm-eval, on the exported model:

  megatron-bar evaluate runs/bar-7b --suite paper --backend vllm \\
      --python envs/lm-eval/bin/python        (not run)
""",
    "chat": """\
The model is loaded into this process, on one GPU or the CPU. In a terminal each token has the
colour of the expert that had most of it, and a line after the answer tells what each had. Into a
pipe go the answers alone; each line that is read is a question.

  megatron-bar chat runs/toy/routed
  megatron-bar chat allenai/OLMo-2-0425-1B-Instruct --system "Answer in one sentence."
  megatron-bar chat runs/toy/routed --without math       how would it answer without this expert?
  echo "What is 17 + 25?" | megatron-bar chat runs/toy/routed
""",
    "serve": """\
Prints what to run; vLLM needs an environment of its own. With --check, what the server says of
fixed tokens is compared with what the model says: a server of other weights ends with status 1.

  megatron-bar serve runs/toy
  megatron-bar serve checkpoints/merged --gpus 2 --port 9000 | sh
  megatron-bar serve runs/toy --check http://localhost:8000
""",
    "report": """\
The page needs no network and runs no script. A run that isn't finished is reported as far as it is.

  megatron-bar report runs/toy
  megatron-bar report runs/toy --compare runs/toy-btx runs/toy-continued
  megatron-bar report runs/toy-compare                        all systems of a recipe
""",
    "verify": """\
CHECKPOINT alone (or a Hugging Face folder): every tensor against the manifest.

With HF_DIR: compares logits on random and real text with transformers', where the model has a
sliding window also on a text that is longer, and names the first module that diverges. Where both
models in fp32 don't fit into 80 % of the free memory, it compares tensor by tensor instead.

  megatron-bar verify checkpoints/anchor
  megatron-bar verify checkpoints/anchor OLMo-2-1124-7B-Instruct --gradients
""",
}
