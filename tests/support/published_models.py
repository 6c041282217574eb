"""Configurations of the models that the paper presets name, and their published sizes.

The dictionaries are the entries of each config.json that determine shapes. A count of parameters
is derived here by hand from them and agrees with the source beside it, in the source's precision.
"""

# Langboat/mengzi-t5-base: T5 1.1 of base size (arXiv:2110.06696 counts 220M without the output
# layer). d = 768, f = 2048, 12 layers, V = 32,128:
#   embeddings and output layer  2 V d                                            49,348,608
#   encoder  12 (4 d d + 3 d f + 2 d) + 32 x 12 + d                              84,954,240
#   decoder  12 (8 d d + 3 d f + 3 d) + 32 x 12 + d                             113,275,008
MENGZI_T5_BASE = {
    "model_type": "t5",
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_heads": 12,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
# bert-base-uncased (arXiv:1810.04805, 110M). d = 768, f = 3072, V = 30,522:
#   embeddings  (V + 512 + 2) d + 2 d                                             23,837,184
#   layers      12 (4 (d d + d) + 2 d f + f + d + 4 d)                            85,054,464
#   pooler      d d + d, which classifiers here leave out                            590,592
BERT_BASE = {
    "model_type": "bert",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
# s-nlp/roberta_toxicity_classifier is a roberta-base (arXiv:1907.11692, 125M): BERT with
# V = 50,265, 514 positions and one token type.
ROBERTA_BASE = BERT_BASE | {
    "model_type": "roberta",
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "vocab_size": 50265,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# OFA-Sys/chinese-clip-vit-base-patch16 (arXiv:2211.01335, table 1: 188M, of which 86M for images
# and 102M for texts).
CHINESE_CLIP_BASE = {
    "model_type": "chinese_clip",
    "projection_dim": 512,
    "text_config": {
        "model_type": "chinese_clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "vocab_size": 21128,
    },
    "vision_config": {
        "model_type": "chinese_clip_vision_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    },
}
MENGZI_T5_BASE_PARAMETERS = 247_577_856
MENGZI_T5_BASE_ENCODER_PARAMETERS = 84_954_240
BERT_BASE_PARAMETERS = 109_482_240
ROBERTA_BASE_PARAMETERS = 124_645_632
VIT_B_32_PARAMETERS = 151_277_313  # of OpenAI's CLIP (arXiv:2103.00020): 151M
# torchvision publishes the counts of its ResNets in the metadata of their weights; a last layer
# of 1000 classes has 2048 x 1000 + 1000 of them.
RESNET_CLASSIFICATION_LAYER = 2_049_000
