"""Every command of the pages is run: here, in a folder of stand-ins, or by the test named beside it.

A command that is new on a page fails here until `COMMANDS` says how it is run, and a line of `COMMANDS` whose
command is on no page fails, too. Python scripts and YAML configurations on the pages are run and read, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from readme_support import SHORT, Elsewhere, Installs, Run, Sandbox, blocks_of, commands_of
from support import REPO
from support import run as start

from awtpn import AWTPN
from awtpn.config.command_line import make_parser

PAGES = ("README.md", "CONTRIBUTING.md", "launch/README.md", "tests/benchmarks/results/README.md")
TEXTS = [(REPO / page).read_text() for page in PAGES]
FOUND = list(dict.fromkeys(command for text in TEXTS for command in commands_of(text)))

LAUNCHERS = Elsewhere(
    ["integration/test_launchers.py::test_a_launcher_starts_two_ranks_that_see_the_same_data"]
)
HOSTFILE = Elsewhere(["integration/test_two_hosts.py::test_deepspeed_with_a_hostfile"])
SLURM = Elsewhere(["integration/test_recipes.py::test_slurm_stops_requeues_and_resumes"])
SLURM_AT_URL = Elsewhere(["integration/test_recipes.py::test_slurm_without_a_shared_disk_in_a_container"])
KUBERNETES = Elsewhere(
    [
        "integration/test_kubernetes.py::test_the_job_is_a_train_job",
        "integration/test_kubernetes.py::test_pods_stop_fail_and_resume_on_other_disks",
    ]
)
WHEEL = Elsewhere(["integration/test_wheel.py::test_the_commands_of_the_pages_work_where_init_was_run"])
WHEEL_TRAINS = Elsewhere(["integration/test_wheel.py::test_the_wheel_trains_under_every_launcher"])
RESTARTS = Elsewhere(["distributed/test_survival.py::test_torchrun_restarts_go_on_by_themselves"])
NODES = Elsewhere(
    [
        "distributed/test_elastic_nodes.py::test_nodes_are_lost_and_added",
        "integration/test_elastic_at_url.py::test_the_first_node_is_lost_in_an_upload_and_replaced",
    ]
)
DEMOS = Elsewhere(
    [
        "integration/test_demo_targets.py::test_values_are_learned_where_ridge_regression_fails",
        "integration/test_demo_targets.py::test_labels_are_learned_where_logistic_regression_fails",
    ]
)
CORPORA = Elsewhere(
    [
        "unit/awtpn/config/test_corpora_configs.py"
        "::test_values_and_labels_of_a_corpus_train_by_their_configuration"
    ]
)

AT_URL = Elsewhere(["integration/test_runs_in_object_store.py::test_commands_take_the_url"])

COMMANDS: dict[str, Run | Elsewhere | Installs] = {
    # README.md: Quickstart.
    "python3 -m venv .venv": Installs(),
    ". .venv/bin/activate": Installs(),
    "pip install .": WHEEL,
    "awtpn train": WHEEL_TRAINS,
    "pip install build": Installs(),
    "python -m build": WHEEL,
    "awtpn init": WHEEL,
    'pip install -e ".[test]"': Installs(),
    "pytest": Installs(),
    "pre-commit install": Elsewhere(["integration/test_readme.py::test_the_hooks_install"]),
    "ruff check": Installs(),
    "ruff format --check": Installs(),
    # Find your case.
    "awtpn extract recordings data/mine": Run(makes="data/mine", says="train: 6 utterances"),
    "awtpn pack features.npz data/mine --format npz": Run(makes="data/mine", says="all: 24 utterances"),
    "awtpn pack features.npz data/mine-int8 --format npz --dtype int8": Run(
        makes="data/mine-int8", says="int8: largest error of a dimension"
    ),
    "awtpn pack data/mine data/mine-int8 --format dataset --dtype int8 --overwrite": Run(
        makes="data/mine-int8", says="int8: largest error of a dimension"
    ),
    "awtpn train --config configs/meld.yaml": Run(
        append=f"--run.dir runs/meld2 {SHORT}", makes="runs/meld2", leaves="runs/meld2/results.json"
    ),
    # Without GPUs cpu.yaml takes the place of ddp.yaml.
    "accelerate launch --config_file configs/accelerate/ddp.yaml launch/train.py "
    "--config configs/meld.yaml": Elsewhere(
        [*LAUNCHERS.tests, "integration/test_recipes.py::test_the_accelerate_configurations"]
    ),
    "accelerate launch --config_file configs/accelerate/zero2.yaml launch/train.py "
    "--config configs/meld.yaml": LAUNCHERS,
    "deepspeed --hostfile HOSTS launch/train.py --deepspeed configs/deepspeed/zero3.json "
    "--config configs/meld.yaml": HOSTFILE,
    "sbatch --nodes 8 launch/slurm.sbatch --config configs/meld.yaml --run.dir /shared/meld": SLURM,
    "kubectl apply -f launch/kubernetes.yaml": KUBERNETES,
    "accelerate launch --cpu --num_processes 2 launch/train.py": LAUNCHERS,
    "accelerate launch -m awtpn.cli train --config configs/meld.yaml": LAUNCHERS,
    "torchrun --standalone --nproc-per-node 2 -m awtpn.cli train --config configs/meld.yaml": LAUNCHERS,
    "deepspeed --num_gpus 2 --module awtpn.cli train --config configs/meld.yaml": LAUNCHERS,
    "awtpn predict runs/meld clip.mp4 --png pictures": Run(
        makes="pictures", leaves="pictures/clip.mp4.png", says='"key": "clip.mp4"'
    ),
    'awtpn predict runs/meld-text clip.mp4 --text "What a day!"': Run(says='"words": ["What", "a", "day!"]'),
    'awtpn predict runs/meld-text --text "What a day!"': Run(says='"key": "text"'),
    "awtpn predict runs/demo demo": Elsewhere(
        ["unit/awtpn/run/test_demos.py::test_every_command_that_reads_a_dataset_takes_the_names"]
    ),
    "awtpn predict runs/meld-text note.txt --png pictures": Run(
        makes="pictures", leaves="pictures/note.txt.png", says="text word"
    ),
    "awtpn serve runs/meld": Elsewhere(
        [
            "integration/test_serve.py::test_it_says_where_it_is_and_ends_quietly",
            "integration/test_serve.py::test_a_clip_is_answered_in_a_browser",
        ]
    ),
    "awtpn cross-validate --help": Run(says="--sweep"),
    # Recordings.
    "awtpn extract IEMOCAP_full_release data/iemocap --format iemocap": Run(
        makes="data/iemocap", leaves="data/iemocap/manifest.json"
    ),
    "awtpn shards info data/iemocap": Run(says="session"),
    "awtpn train --config configs/iemocap.yaml --data.train data/iemocap": Run(
        append=f"--run.dir runs/iemocap {SHORT}", makes="runs/iemocap", leaves="runs/iemocap/results.json"
    ),
    "awtpn extract MELD.Raw data/meld --format meld": Run(makes="data/meld", says="2 clips left out"),
    "awtpn extract MELD.Raw data/meld-text --format meld --audio none --video none --text chargrams": Run(
        makes="data/meld-text", says="train: 3 utterances"
    ),
    "awtpn extract CMU_MOSEI data/mosei-text --format mosei --audio none --video none --text chargrams "
    "--folds cmu_mosei_std_folds.py": Run(makes="data/mosei-text", says="1 clips left out"),
    "awtpn pack CMU_MOSEI data/mosei --format mosei --audio CMU_MOSEI_COVAREP.csd "
    "--video CMU_MOSEI_VisualFacet42.csd --folds cmu_mosei_std_folds.py": Run(
        makes="data/mosei", leaves="data/mosei/manifest.json"
    ),
    # Recordings in shards.
    "awtpn extract recordings data/clips --audio waveform --video frames --video_jpeg 90": Run(
        makes="data/clips", says="read the recordings (audio, video)"
    ),
    "awtpn extract data/clips data/clips-features --audio logmel --video descriptor": Run(
        makes="data/clips-features", says="train with: awtpn train --data.train data/clips-features"
    ),
    "awtpn shards info data/clips": Run(says="waveform (rate 16000, step_seconds 0.1)"),
    # End to end.
    "awtpn train --config finetune-demo": Elsewhere(
        ["integration/test_finetune_demo.py::test_the_demo_trains"]
    ),
    "awtpn extract data/clips data/clips-wavlm --audio microsoft/wavlm-base-plus --video none": Run(
        swap={"microsoft/wavlm-base-plus": "hub/wavlm"}, makes="data/clips-wavlm"
    ),
    "awtpn train --data.train data/clips-wavlm --model.modalities audio --run.dir runs/features": Run(
        append=SHORT, makes="runs/features", leaves="runs/features/results.json"
    ),
    "awtpn train --data.train data/clips --model.modalities audio "
    "--encoder.audio.model microsoft/wavlm-base-plus --encoder.audio.tune lora --run.init_from runs/features "
    "--run.dir runs/end-to-end": Run(
        swap={"microsoft/wavlm-base-plus": "hub/wavlm"},
        append=SHORT,
        makes="runs/end-to-end",
        leaves="runs/end-to-end/results.json",
        says="run.init_from: weights from",
    ),
    'pip install "awtpn-at-scale[finetune]"': Installs(),
    "awtpn train --config configs/finetune.yaml --data.train data/clips": Run(
        append="--encoder.video null --augment.flip 0 --model.modalities audio "
        f"--encoder.audio.model hub/wavlm --run.dir runs/finetune {SHORT}",
        makes="runs/finetune",
        leaves="runs/finetune/results.json",
    ),
    "accelerate launch --config_file configs/accelerate/zero2.yaml launch/train.py "
    "--config configs/finetune.yaml": LAUNCHERS,
    "deepspeed --hostfile HOSTS launch/train.py --deepspeed configs/deepspeed/zero3.json "
    "--config configs/finetune.yaml": HOSTFILE,
    "awtpn export runs/end-to-end my-model --merge": Run(
        swap={"my-model": "my-merged"}, makes="my-merged", leaves="my-merged/encoders/audio/config.json"
    ),
    "awtpn predict my-model clip.mp4": Run(swap={"my-model": "my-merged"}, says='"key": "clip.mp4"'),
    "python -c \"help('shards.sources.iemocap')\"": Run(says="EmoEvaluation"),
    'pip install "awtpn-at-scale[extract]"': Installs(),
    "accelerate launch -m awtpn.cli extract MELD.Raw s3://corpus/meld --format meld "
    "--audio microsoft/wavlm-base-plus --audio_layer 9 --audio_step 0.1 "
    "--video openai/clip-vit-base-patch32 --faces opencv --precision bf16": Run(
        swap={
            "s3://corpus/meld": "data/meld-wavlm",
            "microsoft/wavlm-base-plus": "hub/wavlm",
            "openai/clip-vit-base-patch32": "hub/clip",
        },
        makes="data/meld-wavlm",
        leaves="data/meld-wavlm/manifest.json",
    ),
    # Features.
    "awtpn pack SOURCE OUT --format reference|table|npz|mosei|mmsa|demo|synthetic": Run(
        instead=[
            "awtpn pack features.csv data/packed-table --format table",
            "awtpn pack features.npz data/packed-npz --format npz",
            "awtpn pack - data/packed-demo --format demo",
        ]
    ),
    # Training.
    "awtpn train --help": Run(says="--train.global_batch_size"),
    "awtpn train --config configs/iemocap.yaml --optim.lr 3e-4 --run.dir runs/try1 --run.seed 1": Run(
        append=SHORT, makes="runs/try1", leaves="runs/try1/results.json"
    ),
    "awtpn evaluate runs/try1 --split test": Run(says="w-F1"),
    "awtpn predict runs/try1 DATASET": Run(swap={"DATASET": "data/iemocap"}, says='"probabilities"'),
    "tensorboard --logdir runs": Elsewhere(
        ["integration/test_tensorboard.py::test_every_page_is_served_our_data"]
    ),
    # Values and several labels.
    "awtpn train --config demo-values": DEMOS,
    "awtpn train --config demo-labels": DEMOS,
    "awtpn cross-validate --config demo-values --baseline_only": Run(
        append="--data.cache_dir cache", says="ridge regression, test: 400 utterances"
    ),
    "awtpn pack - data/demo-values --format demo --target values": Run(
        makes="data/demo-values", says="target: regression of valence (-1 to 1), arousal (-1 to 1)"
    ),
    "awtpn train --data.train data/demo-values --data.target valence": Run(
        append=f"--run.dir runs/demo-values {SHORT}", makes="runs/demo-values", says="valence"
    ),
    "awtpn pack CMU_MOSEI data/mosei-all --format mosei --target sentiment --audio CMU_MOSEI_COVAREP.csd "
    "--video CMU_MOSEI_VisualFacet42.csd --folds cmu_mosei_std_folds.py": Run(
        makes="data/mosei-all", says="choose it with --data.target emotions"
    ),
    "awtpn train --config configs/mosei-sentiment.yaml": Run(
        append=f"--run.dir runs/mosei-sentiment {SHORT}", makes="runs/mosei-sentiment", says="Acc-7"
    ),
    # The stand-ins have one value of some of their targets.
    "awtpn train --config configs/mosei-emotions.yaml": CORPORA,
    "awtpn train --config configs/iemocap-vad.yaml": CORPORA,
    "awtpn extract IEMOCAP_full_release data/iemocap-vad --format iemocap --target vad": Run(
        append="--limit 4",
        makes="data/iemocap-vad",
        says="target, named vad: regression of valence (0.5 to 5.5), ",
    ),
    "awtpn shards info URL": Elsewhere(
        ["unit/shards/tools/test_target_summary.py::test_info_counts_the_values"]
    ),
    "awtpn pack unaligned_39.pkl data/sims --format mmsa --target sentiment": Run(
        makes="data/sims", says="target: regression of sentiment"
    ),
    "awtpn extract label-disdim.csv data/mer --clip_folder video-labeled --split train": Run(
        makes="data/mer", says="train: 3 utterances"
    ),
    "awtpn extract label-disdim.csv data/mer --clip_folder video-labeled --split train --target regression "
    "--target_columns valence": Run(makes="data/mer", says="target: regression of valence"),
    "awtpn pack clips.csv data/vad --format table --target regression "
    "--target_columns valence=1:5,arousal=1:5": Run(
        makes="data/vad", says="target: regression of valence (1 to 5), arousal (1 to 5)"
    ),
    "awtpn pack clips.csv data/felt --format table --target multilabel --target_columns happy,sad": Run(
        makes="data/felt", says="target: multilabel of happy"
    ),
    "awtpn pack clips.csv data/felt --format table --target multilabel --target_columns emotions": Run(
        makes="data/felt", says="target: multilabel of anger"
    ),
    # Experiments; Use a model.
    "awtpn report runs/try1": Run(makes="runs/try1/report.html", leaves="runs/try1/report.html"),
    "awtpn cross-validate --config configs/iemocap.yaml --by session --dir runs/iemocap-cv": Run(
        append=f"--no-baseline {SHORT}", leaves="runs/iemocap-cv/report.html"
    ),
    "awtpn cross-validate --config configs/meld.yaml --seeds 0 1 2 3 4 --dir runs/meld-seeds": Run(
        swap={"--seeds 0 1 2 3 4": "--seeds 0 1"},
        append=f"--no-baseline {SHORT}",
        leaves="runs/meld-seeds/report.html",
    ),
    "awtpn cross-validate --config configs/iemocap.yaml --by session --dir runs/sweep "
    "--sweep optim.lr=1e-4,3e-4,1e-3": Elsewhere(
        ["unit/awtpn/experiments/test_crossvalidation.py::test_a_fold_chooses_on_its_training_groups_alone"]
    ),
    "awtpn ablate --config configs/ravdess.yaml --by fold --seeds 0 1 "
    "--dir runs/ravdess-ablations": Elsewhere(
        ["unit/awtpn/experiments/test_ablation.py::test_base_and_variants_share_seeds_and_become_a_table"]
    ),
    "awtpn ablate --config demo --seeds 0 1 --dir runs/demo-ablations": Elsewhere(
        ["unit/awtpn/experiments/test_ablation.py::test_base_and_variants_share_seeds_and_become_a_table"]
    ),
    "awtpn export runs/try1 my-model": Run(makes="my-model", leaves="my-model/README.md"),
    "awtpn push my-model USER/NAME": Elsewhere(
        ["unit/awtpn/model/sharing/test_hub.py::test_models_are_pushed_with_their_card"]
    ),
    "awtpn export --graph": Elsewhere(
        ["unit/awtpn/inference/test_export_graph.py::test_the_exported_program_takes_any_lengths"]
    ),
    'pip install "awtpn-at-scale[baseline]"': Installs(),
    'pip install "awtpn-at-scale[onnx]"': Installs(),
    # launch/README.md. Full commands of these follow.
    "awtpn evaluate": Run(append="--help", says="--predictions"),
    "awtpn cross-validate": Run(append="--help", says="--sweep"),
    "awtpn ablate": Run(append="--help", says="--only"),
    "awtpn extract": Run(append="--help", says="--video_jpeg"),
    "awtpn predict": Run(append="--help", says="--png"),
    "awtpn train --data.train data/mine --model.name gru": Elsewhere(
        ["integration/test_baselines.py::test_a_baseline_is_trained_reported_used_and_exported"]
    ),
    "awtpn compare-models --data.train data/mine --by speaker --seeds 0 1 2 --dir runs/compare": Elsewhere(
        ["integration/test_compare_models.py::test_own_data_takes_the_models_of_the_suite"]
    ),
    "awtpn compare-models --suite suite --sources data/sources --seeds 0 1 2 3 4 --dir runs/suite --jobs 2 "
    "--nested --curves": Elsewhere(
        [
            "integration/test_compare_models.py::test_a_suite_is_packed_trained_and_reported",
            "unit/awtpn/experiments/comparison/test_report.py::test_the_report_shows_all_of_it",
        ]
    ),
    "awtpn compare-models --sources data/sources --seeds 0 1 2 3 4 --dir runs/suite --jobs 2": Elsewhere(
        ["integration/test_compare_models.py::test_a_suite_is_packed_trained_and_reported"]
    ),
    "deepspeed --hostfile HOSTS launch/train.py --deepspeed configs/deepspeed/zero2.json "
    "--run.dir /shared/run": HOSTFILE,
    "torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint node-01:29400 "
    "-m awtpn.cli doctor --run_dir /shared/run --data URL": Elsewhere(
        ["integration/test_two_hosts.py::test_the_doctor_finds_nothing_where_nothing_is_wrong"]
    ),
    "sbatch --nodes 8 launch/slurm.sbatch --config configs/meld.yaml --data.train s3://corpus/meld "
    "--run.dir /shared/meld": SLURM,
    "sbatch --nodes 8 launch/slurm.sbatch --config configs/meld.yaml --data.train s3://corpus/meld "
    "--run.dir s3://bucket/runs/meld": SLURM_AT_URL,
    "docker build -f launch/Dockerfile -t registry.example.org/awtpn .": Elsewhere(
        ["integration/test_dockerfile.py::test_its_steps_make_an_installation_that_trains"]
    ),
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node-01:29400 "
    "launch/train.py --config configs/meld.yaml --run.dir s3://bucket/runs/meld-7": Elsewhere(
        ["integration/test_runs_in_object_store.py::test_two_nodes_without_a_shared_disk"]
    ),
    'pip install "awtpn-at-scale[s3]"': Installs(),
    # Runs without a shared disk.
    "awtpn train --config configs/meld.yaml --run.dir s3://bucket/runs/meld-7": AT_URL,
    "awtpn runs list s3://bucket/runs": AT_URL,
    "awtpn runs status s3://bucket/runs/meld-7": SLURM_AT_URL,
    "awtpn evaluate s3://bucket/runs/meld-7": AT_URL,
    "awtpn runs pull s3://bucket/runs/meld-7 runs/meld-7": AT_URL,
    "awtpn runs delete s3://bucket/runs/meld-7 --yes": AT_URL,
    "awtpn shards simulate s3://corpus/mosei --nodes 64 --gpus-per-node 8 --global-batch 4096": Run(
        swap={"s3://corpus/mosei": "data/mosei"}, says="64 nodes x 8 GPUs"
    ),
    "awtpn shards info | preview | verify URL": Run(
        instead=[
            "awtpn shards info data/meld",
            "awtpn shards preview data/meld",
            "awtpn shards verify data/meld",
        ]
    ),
    "awtpn shards index URL": Elsewhere(
        ["integration/test_object_store.py::test_tars_are_indexed_in_the_bucket"]
    ),
    "awtpn pack - data/demo3 --format demo --modalities audio video text": Run(
        makes="data/demo3", says="--model.modalities audio,video,text"
    ),
    "awtpn train --data.train data/demo3 --model.modalities audio,video,text": Run(
        append=f"--run.dir runs/demo3 {SHORT}", makes="runs/demo3", says="informative text steps: AUROC"
    ),
    # Trackers; norms and traces.
    'pip install "awtpn-at-scale[trackers]"': Installs(),
    "awtpn train --config configs/meld.yaml --track.to wandb,mlflow --run.dir runs/meld": Elsewhere(
        ["distributed/test_records.py::test_trackers_get_what_tensorboard_gets"]
    ),
    "awtpn train --config configs/meld.yaml --train.profile '[20, 24]' --run.dir runs/meld-profile": Run(
        swap={"[20, 24]": "[1, 2]"},
        append=SHORT,
        makes="runs/meld-profile",
        leaves="runs/meld-profile/profile/rank-0.steps-1-2.pt.trace.json",
    ),
    # Fault tolerance; Reproducibility across layouts.
    "awtpn doctor": Run(says="matrix products repeat bit for bit"),
    "awtpn compare RUN_A RUN_B": Run(
        swap={"RUN_A": "runs/meld", "RUN_B": "runs/meld"}, says="equal within tolerance"
    ),
    "python tests/distributed/matrix.py": Elsewhere(
        ["distributed/test_layouts_agree.py::test_a_layout_learns_what_one_process_does"]
    ),
    "torchrun --max-restarts": RESTARTS,
    "torchrun --standalone --nproc-per-node 8 --max-restarts 3 launch/train.py --config configs/meld.yaml "
    "--run.dir runs/meld": RESTARTS,
    "torchrun --nnodes 1:4 --nproc-per-node 8 --max-restarts 10 --rdzv-backend c10d "
    "--rdzv-endpoint meeting:29400 --rdzv-id meld-7 "
    "launch/train.py --config configs/meld.yaml --run.dir s3://bucket/runs/meld-7": NODES,
    "torchrun --nnodes 1:3": NODES,
    "python -c \"import time, torch.distributed as d; s = d.TCPStore('localhost', 29400, is_master=True, "
    'wait_for_workers=False); time.sleep(1e9)"': NODES,
    # CONTRIBUTING.md.
    "awtpn pack --help": Run(says="--format"),
    "awtpn extract --help": Run(says="--audio_layer"),
    "awtpn doctor --memory": Run(
        append="configs/large.yaml --ranks 8 --steps audio=9 video=9 --features audio=9 video=9",
        says="zero3",
    ),
    # tests/benchmarks/results/README.md.
    "awtpn pack ravdess_features.npz data/ravdess --format npz": Run(
        makes="data/ravdess", says="all: 24 utterances"
    ),
    "awtpn cross-validate --config configs/ravdess.yaml --by fold --seeds 0 1 2 --dir runs/ravdess-cv": Run(
        swap={"--seeds 0 1 2": "--seeds 0"}, append=SHORT, leaves="runs/ravdess-cv/report.html"
    ),
    "python tests/benchmarks/loader.py": Elsewhere(
        ["unit/awtpn/bench/test_bench.py::test_readers_read_all_and_refuse_another_corpus"]
    ),
    "python tests/benchmarks/many_shards.py": Elsewhere(
        ["unit/awtpn/bench/test_many_shards.py::test_a_case_is_measured"]
    ),
    "awtpn shards simulate": Run(
        append="1000000x1000 --synthetic --nodes 64 --gpus-per-node 8 --global-batch 4096",
        says="1,000,000 utterances",
    ),
    "awtpn doctor --scaling": Run(
        append="configs/large.yaml --ranks 2 --steps audio=9 video=9 --features audio=9 video=9 "
        "--synthetic 4000x16 --model.shared_dim 8 --train.global_batch_size 16 --train.micro_batch_size 8",
        says="Computed, not measured on a GPU",
    ),
    "python tests/benchmarks/scaling.py": Elsewhere(
        ["unit/awtpn/bench/test_scaling.py::test_the_benchmark_compares_what_it_did_not_fit"]
    ),
    "python tests/benchmarks/step.py": Elsewhere(
        ["unit/awtpn/bench/test_bench.py::test_both_steps_learn_the_same_utterances"]
    ),
    "python tests/benchmarks/targets.py": Elsewhere(
        ["unit/awtpn/bench/test_targets.py::test_variants_are_compared_with_the_defaults"]
    ),
    "python tests/benchmarks/text_alone.py": Elsewhere(
        ["unit/awtpn/bench/test_text_alone.py::test_both_are_measured_on_the_same_text"]
    ),
    "python tests/benchmarks/text_width.py": Elsewhere(
        ["unit/shards/extraction/test_text.py::test_the_width_is_measured_on_generated_text"]
    ),
    # It measures for ten minutes; here without GPUs.
    "awtpn bench": Elsewhere(["unit/awtpn/bench/test_bench.py::test_the_command_writes_what_it_measures"]),
    "awtpn bench --parts finetune --rounds 3": Elsewhere(
        ["unit/awtpn/bench/test_finetune.py::test_both_train_the_same_model"]
    ),
    "awtpn bench --device cuda --out gpu.md": Elsewhere(
        ["unit/awtpn/bench/test_bench.py::test_the_command_writes_what_it_measures"]
    ),
    "pytest -m gpu": Elsewhere(["gpu/test_gpu.py::test_a_step_never_waits_for_the_device"]),
    "awtpn doctor --memory configs/large.yaml --ranks 8 64 --device cuda --steps audio=120 video=60 "
    "--features audio=1024 video=512": Run(says="zero3"),
    "awtpn doctor --scaling configs/large.yaml --ranks 8 64 512 --steps audio=120 video=60 "
    "--features audio=1024 video=512": Run(
        swap={"--ranks 8 64 512": "--ranks 8"},
        append="--synthetic 4000x16 --model.shared_dim 64 --train.global_batch_size 64 "
        "--train.micro_batch_size 8",
        says="Computed, not measured on a GPU",
    ),
    "awtpn doctor --memory configs/finetune.yaml --ranks 8 --device cuda --steps audio=45 video=45 "
    "--encoder.audio.tune full --encoder.audio.checkpointing true": Run(
        append="--encoder.audio.model hub/wavlm --encoder.video.model hub/clip", says="with checkpointing"
    ),
}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, demo_cache: Path) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("readme"), demo_cache)


@pytest.mark.parametrize("command", FOUND, ids=[command[:90] for command in FOUND])
def test_a_command_is_accounted_for(command: str, request: pytest.FixtureRequest) -> None:
    entry = COMMANDS.get(command)
    assert entry is not None, (
        f"nothing runs this command: say in COMMANDS of {Path(__file__).name} how it is run, or which test "
        f"runs it:\n    {command}"
    )
    if isinstance(entry, Elsewhere):
        assert (problem := entry.problem()) is None, problem
    elif isinstance(entry, Installs):
        assert (problem := entry.problem(command)) is None, problem
    elif isinstance(entry, Run):
        run(entry, command, request.getfixturevalue("sandbox"))


def run(entry: Run, command: str, sandbox: Sandbox) -> None:
    if entry.makes:
        sandbox.clear(entry.makes)
    for line in entry.lines(command):
        assert line.split()[:2] == command.split()[:2], "another command is run in its place"
        output = sandbox.run(line.replace("CACHE", str(sandbox.cache)))
        assert entry.says in output
    assert (sandbox.root / entry.leaves).exists()


def test_no_command_is_accounted_for_that_no_page_has() -> None:
    assert [command for command in COMMANDS if command not in FOUND] == [], "remove these lines of COMMANDS"


def test_commands_are_found_wherever_they_stand() -> None:
    text = """Run `awtpn pack a
b`, `awtpn`, `python` or `x.py`; ``a `b` c``.
| one | `python launch/train.py` |

```
awtpn export r m && awtpn predict m d    # a line each # of many
accelerate launch \\
  x.py
recordings
        |  awtpn extract | pack
```

```yaml
pip install this
```
`pip install that`
"""
    assert commands_of(text) == [
        "awtpn pack a b",
        "python launch/train.py",
        "awtpn export r m",
        "awtpn predict m d",
        "accelerate launch x.py",
        "pip install that",
    ]


def test_the_hooks_install(tmp_path: Path) -> None:
    shutil.copy(REPO / ".pre-commit-config.yaml", tmp_path)
    for words in (["git", "init"], ["pre-commit", "install"]):
        code, output = start(
            ["env", "-C", str(tmp_path), *words], tmp_path / "log", GIT_CONFIG_GLOBAL=os.devnull
        )
        assert code == 0, output
    assert (tmp_path / ".git" / "hooks" / "pre-commit").exists()


def test_scripts_run(sandbox: Sandbox) -> None:
    scripts = [script for text in TEXTS for script in blocks_of(text, "python")]
    assert scripts
    for script in scripts:
        audio = np.zeros((7, AWTPN.from_pretrained(sandbox.root / "my-model").feature_dims["audio"]))
        local = script.replace("s3://corpus/iemocap", "data/iemocap").replace("audio = ...", "")
        with contextlib.chdir(sandbox.root):
            exec(compile(local, "README.md", "exec"), {"audio": audio.astype(np.float32)})


def test_configurations_are_read(sandbox: Sandbox, tmp_path: Path) -> None:
    blocks = [block for text in TEXTS for block in blocks_of(text, "yaml")]
    assert blocks
    for block in blocks:
        (tmp_path / "config.yaml").write_text(block)
        read = make_parser().parse_args(["--config", str(tmp_path / "config.yaml")])
        assert read.data.train == yaml.safe_load(block)["data"]["train"]
