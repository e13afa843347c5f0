# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""What the release gets wrong: the contract tests that show it, and how each of them ends on the release."""

from __future__ import annotations

import json
import subprocess
import sys
import unittest
from pathlib import Path

from parameterized import parameterized

from fork.referee import release_environment

TESTS = Path(__file__).resolve().parents[1]

# by file: what is wrong, and how the tests of it end on the release
DEFECTS: dict[str, dict[str, dict[str, str]]] = {
    "networks/blocks/test_attention_defects.py": {
        "decomposed relative positions are wrong in 3-D": {
            "test_01_relative_position_in_3d": "differs",
            "test_01_relative_position_in_3d_of_unequal_sides": "raises",
        },
        "dropout stays on in evaluation with flash attention": {
            "test_02_dropout_is_off_in_evaluation": "differs",
        },
        "flash attention mistakes a (B, S) mask": {
            "test_03_flash_takes_a_mask_over_keys": "raises",
        },
        "attention_dtype casts q and k but not v": {
            "test_04_attention_dtype": "raises",
        },
        "a fully masked query gives NaN and poisons every gradient": {
            "test_05_a_token_that_attends_to_nothing": "differs",
        },
        "a mask together with causal attention is refused on one path alone": {
            "test_06_mask_and_causal_are_refused_on_every_path": "raises",
        },
        "relative positions raise for another number of keys, or a depth of 1": {
            "test_07_relative_position_of_a_context": "raises",
            "test_07_relative_position_with_a_depth_of_one": "raises",
        },
        "causal attention over more than sequence_length tokens raises": {
            "test_08_causal_with_more_tokens_than_planned": "raises",
        },
        "an empty batch raises": {
            "test_12_empty_batch": "raises",
            "test_12_empty_batch_with_relative_position": "raises",
        },
        "dim_head still demands a divisible hidden_size; without projection a wrong width comes out": {
            "test_13_a_width_that_cannot_fit": "differs",
            "test_13_width_of_a_head_frees_the_hidden_size": "raises",
        },
        "cross attention ignores save_attn": {
            "test_14_matrix_of_the_cross_attention": "differs",
        },
        "a norm_cross_attn without gradient stops DistributedDataParallel": {
            "test_14_every_parameter_learns": "differs",
        },
        "causal_mask is saved": {
            "test_causal_mask_is_not_saved": "differs",
        },
        "relative positions do not script": {
            "test_relative_position_scripts": "raises",
        },
        "every call builds the matrix, unless told otherwise": {
            "test_no_matrix_by_default": "differs",
        },
        "the blocks need einops": {
            "test_needs_torch_alone": "differs",
        },
    },
    "networks/nets/test_unet_defects.py": {
        "upcast_attention fails in half models, and without conditioning no block receives it": {
            "test_04_upcast_in_a_half_model": "raises",
            "test_04_upcast_without_conditioning": "differs",
        },
        "MAISI's U-Net adds control residuals in place": {
            "test_09_training_maisi_beside_a_controlnet": "raises",
            "test_inputs_are_not_changed": "differs",
        },
        "one spatial axis, and volumes in half precision on a CPU, raise": {
            "test_11_half_precision_volumes_on_the_cpu": "raises",
            "test_11_one_spatial_axis": "raises",
            "test_11_one_spatial_axis_with_context": "raises",
        },
        "an empty batch raises": {
            "test_12_empty_batch": "raises",
            "test_12_empty_batch_controlnet": "raises",
            "test_12_empty_batch_with_context": "raises",
        },
        "MAISI refuses flash attention without CUDA": {
            "test_15_flash_on_the_cpu": "raises",
        },
        "DiffusionModelEncoder is not exported": {
            "test_encoder_is_exported": "differs",
        },
        "load_old_state_dict uses projections that were never used": {
            "test_generative_models_projection_was_never_used": "differs",
        },
        "no diffusion network or ControlNet scripts": {
            "test_scripts_controlnet": "raises",
            "test_scripts_encoder": "raises",
            "test_scripts_maisi_controlnet": "raises",
            "test_scripts_maisi_unet": "raises",
            "test_scripts_spade": "raises",
            "test_scripts_unet": "raises",
            "test_scripts_unet_with_context": "raises",
        },
    },
    "networks/nets/test_vit_defects.py": {
        "MaskedAutoEncoderViT fails under autocast": {
            "test_11_masked_autoencoder_under_autocast": "raises",
        },
        "a norm_cross_attn without gradient stops DistributedDataParallel": {
            "test_14_every_parameter_of_the_decoder_learns": "differs",
            "test_14_every_parameter_of_the_masked_autoencoder_learns": "differs",
            "test_14_every_parameter_of_unetr_learns": "differs",
            "test_14_every_parameter_of_vit_learns": "differs",
            "test_14_every_parameter_of_vitautoenc_learns": "differs",
        },
        "an image of another size gets the positions of others without a word": {
            "test_17_image_laid_out_otherwise": "differs",
            "test_17_image_of_one_patch": "differs",
            "test_17_masked_autoencoder": "differs",
            "test_17_unetr": "raises",
        },
        "a masking ratio that leaves no patch fails inside of torch": {
            "test_masking_ratio_that_leaves_nothing": "raises",
        },
        "ViTAutoEnc does not script": {
            "test_vitautoenc_scripts": "raises",
        },
        "a causal block does not export with a dynamic length": {
            "test_sequence_length_of_an_exported_decoder": "raises",
        },
        "too many tokens are an error that names nothing": {
            "test_more_tokens_than_the_decoder_has_positions": "raises",
        },
        "causal_mask is saved": {
            "test_causal_masks_are_not_saved": "differs",
        },
        "load_old_state_dict mixes up two norms of old decoders": {
            "test_generative_models_norms": "differs",
        },
        "load_old_state_dict empties the caller's dictionary": {
            "test_the_caller_keeps_his_checkpoint": "differs",
        },
        "a load that fails changes weights": {
            "test_a_misfit_is_refused_before_any_weight_changes": "differs",
        },
        "the networks need einops": {
            "test_needs_torch_alone": "differs",
        },
    },
    "networks/nets/test_autoencoder_defects.py": {
        "no autoencoder scripts": {
            "test_autoencoderkl_maisi_scripts": "raises",
            "test_autoencoderkl_scripts": "raises",
            "test_spade_autoencoderkl_scripts": "raises",
            "test_vqvae_scripts": "raises",
        },
        "VQVAE and AutoencoderKlMaisi fail in other types, and MAISI's in 2-D": {
            "test_11_float16_norms_under_autocast_on_a_cpu": "raises",
            "test_11_float16_norms_without_autocast": "raises",
            "test_11_maisi_2d": "raises",
            "test_11_maisi_in_double_precision": "raises",
            "test_11_maisi_in_half_precision": "raises",
            "test_11_vqvae_in_double_precision": "raises",
            "test_11_vqvae_in_half_precision": "raises",
        },
        "an empty batch raises": {
            "test_12_empty_batch_autoencoderkl": "raises",
            "test_12_empty_batch_maisi": "raises",
            "test_12_empty_batch_spade": "raises",
            "test_12_empty_batch_vqvae": "differs",
        },
        "MAISI's pieces fail or shrink where they do not divide the size": {
            "test_maisi_more_pieces_than_a_small_volume_has": "raises",
            "test_maisi_pieces_that_do_not_divide_the_size": "raises",
        },
        "load_old_state_dict uses projections that were never used": {
            "test_projection_of_generative_models_is_never_used": "differs",
        },
        "load_old_state_dict empties the caller's dictionary": {
            "test_the_caller_keeps_his_checkpoint": "differs",
        },
        "VQVAE does not load its first layout": {
            "test_vqvae_of_generative_models_0_1": "raises",
        },
        "VQVAE takes no images of one axis": {
            "test_vqvae_1d": "differs",
        },
        "under autocast on a CPU the codebook chooses other entries": {
            "test_codebook_under_autocast_on_a_cpu": "differs",
        },
    },
    "inferers/test_vqvae_transformer_defects.py": {
        "VQVAETransformerInferer never calls its base constructor": {
            "test_16_repr": "raises",
            "test_16_state_dict": "raises",
        },
        "sample(top_k=1) raises where the begin token is the likeliest": {
            "test_16_the_begin_token_may_be_the_likeliest": "raises",
        },
    },
    "networks/state_dict/test_copying_defects.py": {
        "CheckpointLoader(strict_shape=False) copies nothing": {
            "test_19_the_loader_copies_what_fits": "differs",
        },
        "helpers that copy by names copy a part of an older checkpoint": {
            "test_19_a_network_of_generative_models_is_copied_whole": "differs",
        },
    },
}

PROGRAM = """
import json, sys, unittest
suite = unittest.defaultTestLoader.loadTestsFromName(sys.argv[1])
endings = {test._testMethodName: "passes" for case in suite for test in case}
result = unittest.TextTestRunner().run(suite)
for ending, found in (("differs", result.failures), ("raises", result.errors)):
    endings.update({test._testMethodName: ending for test, _ in found})
print(json.dumps(endings))
"""


class TestDefects(unittest.TestCase):
    @parameterized.expand([(file,) for file in DEFECTS])
    def test_on_the_release(self, file):
        """A test of a defect that the release passes proves nothing; the fork runs these files like any other."""
        script = TESTS / file
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, script.stem]
        done = subprocess.run(command, cwd=script.parent, env=release_environment(), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        expected = {name: ending for tests in DEFECTS[file].values() for name, ending in tests.items()}
        self.assertEqual(json.loads(done.stdout.splitlines()[-1]), expected, done.stderr[-2000:])
        self.assertNotIn("passes", expected.values())

    def test_no_file_is_forgotten(self):
        files = {str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*_defects.py")}
        self.assertEqual(files, set(DEFECTS))


if __name__ == "__main__":
    unittest.main()
