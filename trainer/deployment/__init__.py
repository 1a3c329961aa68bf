"""What an operator prepares before a job runs: job.yaml, the compose file, and app-compose.json.

`shipped_compose` is the compose file that a deployment starts from, `compose_rendering` puts a job spec into it,
`app_compose` makes app-compose.json for a deployment profile, `clean_start` is the script that the `kms` profile
runs in the VM, `model_pins` and `job_template` write job.yaml, `operator_variables` lists what a compose file may
take from outside. Pure: texts in, texts out.
"""

from trainer.deployment.app_compose import (
    KEY_PROVIDER_PLACEHOLDER,
    DeploymentProfile,
    render_app_compose,
)
from trainer.deployment.clean_start import CLEAN_START
from trainer.deployment.compose_rendering import read_embedded_job, render_compose
from trainer.deployment.job_template import render_job_template
from trainer.deployment.model_pins import (
    ModelPins,
    pin_model,
    read_chat_template_path,
    read_model_name,
    select_model_files,
)
from trainer.deployment.operator_variables import (
    OPERATOR_VARIABLES,
    operator_reference,
    read_operator_variables,
)
from trainer.deployment.shipped_compose import SHIPPED_COMPOSE

__all__ = [
    "CLEAN_START",
    "KEY_PROVIDER_PLACEHOLDER",
    "OPERATOR_VARIABLES",
    "SHIPPED_COMPOSE",
    "DeploymentProfile",
    "ModelPins",
    "operator_reference",
    "pin_model",
    "read_chat_template_path",
    "read_embedded_job",
    "read_model_name",
    "read_operator_variables",
    "render_app_compose",
    "render_compose",
    "render_job_template",
    "select_model_files",
]
