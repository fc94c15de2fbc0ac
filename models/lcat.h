#pragma once
#include "models/mixer.h"

namespace margay {

/// Landmark CAT: the front end of CAT, then attention inside blocks of LcatConfig::block_size tokens, and to blocks
/// before through their landmarks, which are what one filter as long as a block makes of its keys. Li et al. 2024,
/// arXiv:2407.05591, section 5, in a causal form with several heads whose choice of blocks can be trained: first with
/// top_k = 0 (every landmark has a gradient), then, going on from there, with the blocks that each token may retrieve.
std::unique_ptr<Mixer> make_lcat(const ModelConfig& config, int64_t layer, const Scope& scope);

struct LandmarkRecall {
  Tensor y;      ///< [B, dh]
  Tensor block;  ///< i32 [B]: the retrieved block, -1 if the last one is the only one
};

/// The paper's form of LCAT for one query at the end of a sequence (arXiv:2407.05591, section 5): the landmark of a
/// block is the sum of its keys, the block before the last one with the largest landmark_q . landmark is retrieved, of
/// equals the earlier one, and the query attends to its tokens and to those of the last block with scores scale q . k.
///
/// q [B, dh]; k, v [B, L, dh], L > 0, keys delayed and filtered over the whole sequence, so that what answers a query
/// lies in the block of the key it matches; landmark_q [B, dh], undefined for q. Where block_size does not divide L,
/// zero rows fill up the first block. The gradients of k, v and q are those of attention to a fixed choice. Throws
/// OpError for shapes that do not fit.
LandmarkRecall landmark_recall(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& landmark_q,
                               int64_t block_size, double scale);

}  // namespace margay
