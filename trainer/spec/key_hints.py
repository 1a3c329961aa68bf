"""Hints for unknown keys and values: those of axolotl, LLaMA-Factory, TRL, unsloth, ms-swift and torchtune."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Final

_OTHER_NAMES: Final[Mapping[str, str]] = {
    "model.model_name_or_path": (
        "base_model model_name model_id model_id_or_path pretrained_model_name_or_path hf_model"
    ),
    "model.model_revision": "revision revision_of_model hub_revision",
    "model.dtype": "torch_dtype model_dtype base_model_dtype",
    "model.load_in_4bit": "quantization_bit quant_bits qlora use_4bit bits int4",
    "model.load_in_8bit": "use_8bit int8",
    "model.attn_implementation": (
        "flash_attention flash_attn flash_attention_2 use_flash_attention use_flash_attention_2 use_flash_attn "
        "attn_impl sdp_attention xformers_attention eager_attention flex_attention attention_implementation"
    ),
    "lora.lora_r": "r rank lora_rank lora_dim peft_lora_r",
    "lora.lora_alpha": "alpha peft_lora_alpha lora_scale",
    "lora.lora_dropout": "dropout peft_lora_dropout",
    "lora.lora_target_modules": (
        "target_modules lora_target lora_target_linear lora_attn_modules apply_lora_to_mlp apply_lora_to_output "
        "lora_layers target_regex finetune_attention_modules finetune_mlp_modules"
    ),
    "lora.use_rslora": "rslora peft_use_rslora lora_use_rslora",
    "lora.use_dora": "dora peft_use_dora lora_use_dora",
    "lora.exclude_modules": "lora_exclude_modules excluded_modules",
    "lora.modules_to_save": "lora_modules_to_save additional_target train_embeddings",
    "lora.init_lora_weights": "init_weights peft_init_lora_weights pissa_init lora_initialization",
    "lora.start_from": (
        "lora_model_dir adapter_name_or_path adapters adapter_checkpoint resume_adapter finetuned_adapter"
    ),
    "data.format": "type formatting dataset_format ds_type conversation",
    "data.columns": (
        "dataset_text_field text_column column_mapping column_map columns_mapping field_messages "
        "field_instruction field_input field_output field_system field_chosen field_rejected "
        "message_property_mappings conversation_column message_field_role message_field_content prompt_column "
        "response_column"
    ),
    "data.ignore_columns": "remove_unused_columns remove_columns",
    "data.eval_files": (
        "eval_dataset test_datasets validation_file val_dataset eval_data dataset_validation validation_data "
        "valid_file"
    ),
    "data.test_split_size": (
        "val_set_size val_size test_size eval_size split_dataset_ratio validation_split "
        "validation_split_percentage dataset_test_split"
    ),
    "data.max_length": (
        "max_seq_length max_seq_len sequence_len cutoff_len model_max_length max_sequence_length block_size "
        "seq_length max_prompt_length max_completion_length max_source_length max_target_length"
    ),
    "data.on_overlong": (
        "drop_exceeding_length truncation_mode excess_length_strategy truncation_strategy truncation "
        "max_length_strategy"
    ),
    "data.assistant_only_loss": "roles_to_train train_on_responses_only train_on_assistant_only loss_scale",
    "data.completion_only_loss": "train_on_inputs train_on_prompt completion_only train_on_input train_on_source",
    "data.train_on": "mask_history train_on_last_turn last_turn_only",
    "data.chat_template": (
        "chat_template_jinja template template_type prompt_template chat_template_name custom_template"
    ),
    "data.chat_template_kwargs": "template_kwargs chat_template_args enable_thinking reasoning_effort",
    "data.mix": "interleave_probs mix_strategy dataset_weights dataset_probs mixture_weights dataset_mixer",
    "data.packing": "sample_packing neat_packing pack packed packing_cache padding_free flatten_packing",
    "train.method": "rl stage training_type rlhf_type trainer_type algorithm train_method recipe",
    "train.engine": "use_unsloth backend train_backend tuner_backend",
    "train.num_processes": "nproc_per_node num_gpus n_gpu n_gpus world_size num_devices gpus devices",
    "train.fsdp": "fsdp_config fsdp_version fsdp_sharding_strategy fsdp_transformer_layer_cls_to_wrap use_fsdp",
    "train.per_device_train_batch_size": (
        "batch_size micro_batch_size train_batch_size per_gpu_train_batch_size train_micro_batch_size_per_gpu"
    ),
    "train.per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size val_batch_size",
    "train.gradient_accumulation_steps": (
        "grad_accum gradient_accumulation accumulation_steps grad_accumulation_steps accumulate_grad_batches"
    ),
    "train.learning_rate": "lr max_lr base_lr peak_lr",
    "train.loraplus_lr_ratio": "lora_plus_ratio loraplus_ratio lora_plus lora_plus_scale lorap_lr_ratio",
    "train.lr_scheduler_type": "lr_scheduler scheduler lr_schedule lr_decay_style scheduler_type",
    "train.lr_scheduler_kwargs": "min_lr lr_min cosine_min_lr_ratio min_lr_ratio lr_scheduler_args num_cycles",
    "train.warmup_steps": "warmup num_warmup_steps lr_warmup_steps warmup_iters lr_warmup_iters",
    "train.warmup_ratio": "warmup_fraction lr_warmup_fraction warmup_proportion lr_warmup_ratio",
    "train.weight_decay": "wd decay",
    "train.adam_beta1": "beta1 betas",
    "train.adam_beta2": "beta2",
    "train.adam_epsilon": "eps adam_eps optimizer_epsilon",
    "train.max_grad_norm": (
        "gradient_clipping grad_clip clip_grad clip_grad_norm gradient_clip_val max_gradient_norm "
        "clip_gradients grad_clip_norm clip_grad_max_norm"
    ),
    "train.num_train_epochs": "epochs num_epochs n_epochs max_epochs train_epochs",
    "train.max_steps": (
        "steps train_steps total_steps num_steps iters train_iters max_steps_per_epoch max_train_steps"
    ),
    "train.seed": "random_state data_seed random_seed",
    "train.beta": "dpo_beta pref_beta rl_beta dpo_alpha orpo_alpha orpo_beta kto_beta",
    "train.desirable_weight": "kto_chosen_weight chosen_weight kto_desirable_weight",
    "train.undesirable_weight": "kto_rejected_weight rejected_weight kto_undesirable_weight",
    "train.loss_type": "pref_loss dpo_loss dpo_loss_type rl_loss",
    "train.loss_weights": "rpo_alpha pref_ftx sft_weight nll_loss_weight",
    "train.label_smoothing": "dpo_label_smoothing label_smoothing_factor",
    "train.neftune_noise_alpha": "noisy_embedding_alpha neft_alpha neftune_alpha",
    "train.gradient_checkpointing": (
        "use_gradient_checkpointing gradient_checkpointing_kwargs enable_activation_checkpointing "
        "activation_checkpointing"
    ),
    "train.torch_compile": "compile use_compile torch_compile_backend",
    "train.torch_compile_mode": "compile_mode dynamo_mode",
    "train.optim": "optimizer optimizer_type optim_type",
    "train.bf16": "mixed_precision amp use_bf16 pure_bf16 bfloat16",
    "train.logging_steps": "log_every_n_steps log_interval logging_strategy log_steps print_freq",
    "train.eval_steps": (
        "eval_strategy evaluation_strategy evals_per_epoch eval_interval run_val_every_n_steps do_eval"
    ),
    "train.max_eval_rows": "max_eval_samples num_eval_samples limit_val_batches",
    "train.early_stopping_patience": "early_stopping patience early_stop_interval",
    "train.save_steps": "save_strategy saves_per_epoch checkpointing_steps save_interval save_every_n_steps",
    "train.save_total_limit": "save_limit max_checkpoints keep_last_n_checkpoints",
    "output.merged_16bit": (
        "merge_lora merge_adapter save_merged merge_and_unload save_method export_dir merge_weights"
    ),
    "evaluation.metrics": "predict_with_generate compute_accuracy compute_metrics eval_metrics",
    "output.samples": "generation_samples num_samples do_bench_eval",
    "output.sample_max_new_tokens": "eval_max_new_tokens generation_max_length",
    "output.include_logs": "save_logs",
    "privacy.target_epsilon": "epsilon dp_epsilon",
    "privacy.target_delta": "delta dp_delta",
    "privacy.max_grad_norm": "per_sample_max_grad_norm max_per_sample_grad_norm",
    "train": "training training_args training_arguments trainer hyperparameters",
    "lora": "peft peft_config lora_config adapter_config tuner",
    "model": "checkpointer",
}
"""Our key, or section → its names in other fine-tuning tools."""

_NONE: Final[Mapping[str, str]] = {
    "data files are named on the command line of trainer validate, seal and submit": (
        "dataset datasets dataset_name dataset_path dataset_dir dataset_config dataset_id train_file "
        "train_dataset train_data training_data data_path data_dir data_files custom_dataset_info path split "
        "train_on_split"
    ),
    "every row is used; data.max_rows is a bound beyond which a dataset is refused": (
        "max_samples max_train_samples num_train_samples streaming val_dataset_sample subset"
    ),
    "rows are read into memory once, and written nowhere": (
        "cache_dir overwrite_cache dataset_prepared_path dataset_num_proc dataset_processes "
        "preprocessing_num_workers dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor "
        "num_workers load_from_cache_file preprocessing_batch_size dataset_kwargs dataset_keep_in_memory"
    ),
    "rows are shuffled by train.seed in every epoch, in batches of similar length": (
        "shuffle shuffle_buffer_size shuffle_merged_datasets group_by_length length_column_name "
        "train_sampling_strategy"
    ),
    "rows are padded to the longest of a batch at most, or not at all": (
        "pad_to_sequence_len pad_to_max_length pad_to_multiple_of eval_sample_packing eval_packing padding_side "
        "sample_packing_eff_est"
    ),
    "nothing leaves the job but the sealed result, which has all metrics and curves": (
        "report_to wandb wandb_project wandb_entity wandb_name wandb_run_id wandb_watch wandb_log_model "
        "mlflow_tracking_uri mlflow_experiment_name comet_project_name use_tensorboard use_swanlab "
        "swanlab_project swanlab_mode metric_logger logger plot_loss run_name project logging_dir "
        "trackio_space_id include_num_input_tokens_seen"
    ),
    "the result is sealed to the data provider, and pushed to no hub": (
        "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hf_token token use_auth_token "
        "hf_use_auth_token push_to_hub_model_id use_hf use_modelscope"
    ),
    "the job has a directory of its own; the provider names where the result goes when it is opened": (
        "output_dir overwrite_output_dir save_path save_safetensors save_only_model save_only_lora_adapter"
    ),
    "a job that was interrupted continues from its checkpoint by itself": (
        "resume_from_checkpoint auto_resume_from_checkpoints resume_only_model ignore_data_skip "
        "should_save_checkpoints"
    ),
    "the adapter is LoRA; with model.load_in_4bit it is what others call QLoRA": (
        "adapter finetuning_type train_type tuner_type sft_type use_peft peft_type use_lora task_type "
        "inference_mode full_finetuning freeze_trainable_layers unfrozen_parameters"
    ),
    "the adapter has the same rank in every module, and no biases": (
        "bias lora_bias layers_to_transform peft_layers_to_transform layers_pattern rank_pattern alpha_pattern "
        "fan_in_fan_out lora_fan_in_fan_out megatron_config"
    ),
    "4 bits are NormalFloat with double quantisation, computed in bfloat16": (
        "bnb_4bit_quant_type bnb_4bit_compute_dtype bnb_4bit_use_double_quant bnb_4bit_quant_storage "
        "quantization_method quant_method quantization_type double_quantization quantization_config gptq awq "
        "upcast_layernorm"
    ),
    "training computes in bfloat16 with train.bf16, else in float32; model.dtype is that of the base weights": (
        "fp16 tf32 float16 fp16_full_eval bf16_full_eval fp32 half_precision_backend fp16_opt_level pure_fp16"
    ),
    "several GPUs of one VM train with train.num_processes and train.fsdp": (
        "deepspeed zero_stage ddp ddp_timeout ddp_find_unused_parameters ddp_backend ddp_bucket_cap_mb "
        "local_rank accelerator_config tensor_parallel_size context_parallel_size sequence_parallel_degree "
        "sequence_parallel_size num_nodes nnodes node_rank master_port use_ray parallelism_config"
    ),
    "the job uses the devices that its VM has, and moves nothing between them and the host": (
        "device device_map low_cpu_mem_usage max_memory gpu_memory_limit use_cpu no_cuda gpu_ids "
        "enable_activation_offloading activation_offloading use_reentrant_offload offload_optimizer "
        "offload_param torch_empty_cache_steps"
    ),
    "the best fused computation that the model allows is chosen and checked by itself": (
        "use_liger_kernel liger_rope liger_rms_norm liger_swiglu liger_glu_activation "
        "liger_fused_linear_cross_entropy enable_liger_kernel cut_cross_entropy use_cce lora_mlp_kernel "
        "lora_qkv_kernel lora_o_kernel use_cache plugins unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o "
        "unsloth_cross_entropy_loss"
    ),
    "the base model's own tokenizer and generation configuration say it": (
        "tokenizer tokenizer_type tokenizer_name tokenizer_config tokenizer_use_fast use_fast_tokenizer "
        "special_tokens pad_token eos_token bos_token unk_token add_special_tokens split_special_tokens "
        "resize_vocab add_tokens"
    ),
    "write it into each row, as a system turn": "system_prompt default_system system_message new_system_prompt",
    "the architecture is the one that config.json names, without code of its own": (
        "model_type is_llama_derived_model is_mistral_derived_model is_falcon_derived_model model_class "
        "rope_theta rope_scaling_type"
    ),
    "the reference is the model that training starts from, computed once before the first step": (
        "ref_model ref_adapters reference_model precompute_ref_log_probs ref_model_mixup_alpha sync_ref_model "
        "reference_free precompute_ref_batch_size"
    ),
    "train.method dpo has the terms of train.loss_type": (
        "simpo_gamma cpo_alpha dpop_lambda discopop_tau f_divergence_type use_weighting bco_gemma"
    ),
    "the best adapter is that of the lowest held-out loss": "metric_for_best_model greater_is_better",
    "one command trains, evaluates before and after, and ends": (
        "do_train do_predict do_test eval_on_start prediction_loss_only eval_delay logging_first_step"
    ),
    "runs are deterministic as far as the device allows": "full_determinism deterministic cudnn_benchmark strict",
    "embeddings of new tokens are trained in full: lora.modules_to_save: [embed_tokens]": (
        "trainable_token_indices new_tokens new_special_tokens trainable_tokens fix_untrained_tokens"
    ),
    "batches of all steps have the rows that train.per_device_train_batch_size and accumulation make": (
        "global_batch_size total_batch_size auto_find_batch_size dataloader_drop_last drop_last split_batches"
    ),
}
"""Why there is no such key here → its names in other fine-tuning tools."""

_OURS: Final = {name: key for key, names in _OTHER_NAMES.items() for name in names.split()}
_REASONS: Final = {name: reason for reason, names in _NONE.items() for name in names.split()}


def key_hint(unknown: str, known: Collection[str]) -> str | None:
    """Returns what the author of an unknown key most likely needs, or None.

    Args:
        unknown: the key as found, with its section if it has one.
        known: all `section.key` names, and the sections.
    """
    section, _, leaf = unknown.rpartition(".")
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    if leaf in _OURS:
        return f"did you mean {_OURS[leaf]}?"
    if leaf in _REASONS:
        return f"there is none: {_REASONS[leaf]}"
    # Spellings are compared within the section: across all of them `rank` is most similar to `train`.
    here = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    close = difflib.get_close_matches(leaf, here, n=1, cutoff=0.6)
    return f"did you mean {here[close[0]]}?" if close else None


def nested_hints(value: object, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields key and hint for what is written within an unknown key, such as the entries of a list of datasets."""
    if isinstance(value, list):
        for item in value:
            yield from nested_hints(item, known)
    if isinstance(value, dict):
        for name, inner in value.items():
            if hint := key_hint(str(name), known):
                yield str(name), hint
            yield from nested_hints(inner, known)
