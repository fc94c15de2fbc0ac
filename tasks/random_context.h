#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/rng.h"

namespace margay {

/// The random context model (Li et al. 2024, arXiv:2407.05591, definition 6): sequences of embeddings, not of tokens.
/// The query, a unit vector q, is the last row and one earlier row; all other rows are N(0, variance / d_model I).
struct RandomContextModel {
  int64_t seq_len = 4096;
  int64_t d_model = 64;
  double variance = 1.0;  ///< sigma^2: the expected squared length of a row
  int64_t seed = 123;
};

/// One sequence of the model.
struct RandomContext {
  int64_t seq_len, d_model;
  std::vector<float> rows;  ///< [seq_len, d_model]
  int64_t place;            ///< where the query stood before the end

  std::span<const float> row(int64_t position) const {
    return std::span(rows).subspan(static_cast<size_t>(position * d_model), static_cast<size_t>(d_model));
  }
  std::span<const float> query() const { return row(seq_len - 1); }
};

/// Sequence `index` of the model, with the earlier query at a uniform place of 0 ... places - 1. A pure function of its
/// arguments. Throws ConfigError for sizes below 2 rows, 1 dimension or 1 place, and for more places than rows before
/// the last.
RandomContext make_random_context(const RandomContextModel& model, int64_t index, int64_t places);

/// LCAT's block choice for the last row, directly: the block of `block_size` rows, of all but the last one, whose sum
/// (its landmark: a uniform long filter) has the largest product with the query; the lowest of equals.
/// Throws ConfigError unless block_size divides the sequence into at least two blocks.
int64_t landmark_choice(const RandomContext& context, int64_t block_size);

/// The same choice for contexts too long to draw, through the exact law of its scores. Every row but the query is
/// isotropic, so with M = L / B blocks of B tokens the target's landmark scores 1 + N(0, s (B - 1) / d), the M - 2
/// others N(0, s B / d), all independent, s = variance. Each draw of these normals is decided right from one dimension
/// d on:
///
///     d > needed = s max_m (sqrt(B) z_m - sqrt(B - 1) z_0)^2   (0 where the maximum is negative).
///
/// So one draw serves all d: the success rate at d is the share of draws with needed < d.
struct LandmarkLaw {
  int64_t blocks;          ///< M >= 2: the target's, the last, and M - 2 that compete
  int64_t block_size;      ///< B >= 1
  double variance = 1.0;   ///< s
  int64_t query_dims = 0;  ///< 0: one fixed query. > 0: the target's block must win for every unit query of a space of
                           ///< so many dimensions at once; z are then vectors and needed is s max |...|^2
};

/// Draws the dimension from which on the choice is right. A fixed query's maximum of M - 2 normals is drawn through its
/// inverse distribution function, at the same cost for any M; a query space draws one competitor after the other.
/// Throws ConfigError for sizes out of range.
double draw_needed_dimension(const LandmarkLaw& law, RandomStream& random);

/// Appends the draws of indices needed.size() ... draws - 1 of `seed`. Success at d has the rate (draws below d) /
/// draws; their quantile p is the dimension at which the success rate is p.
void append_needed_dimensions(const LandmarkLaw& law, int64_t draws, int64_t seed, std::vector<double>& needed);

/// A sufficient dimension for success with probability 1 - delta, fixed query:
/// s B (sqrt(2 ln M) + sqrt(2 ln(1 / delta)))^2.
double sufficient_dimension(const LandmarkLaw& law, double delta);
/// The leading order of the dimension of success with probability 1/2: s B 2 ln M for a fixed query (proposition 1 of
/// the paper gives d = O(s B ln(L / B))), s B (sqrt(2 n) + sqrt(2 ln M))^2 for all queries of n dimensions (an upper
/// bound).
double predicted_dimension(const LandmarkLaw& law);

/// z with P(N(0, 1) > z) = p, for 0 < p < 1, to about 1e-14.
double normal_upper_quantile(double p);
/// The maximum of n standard normals; minus infinity for n = 0.
double draw_normal_maximum(int64_t n, RandomStream& random);

}  // namespace margay
