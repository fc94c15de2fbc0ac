#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "tasks/random_context.h"
#include "tasks/study/report.h"
#include "tasks/study/study.h"

namespace margay {
namespace {

constexpr int64_t kSeqLen = int64_t{1} << 20;
constexpr std::array<int64_t, 4> kQueryDims = {0, 4, 16, 64};  // 0: a fixed query
constexpr std::array<double, 4> kShares = {0.1, 0.5, 0.9, 0.99};
constexpr std::array<const char*, 4> kShareColumns = {"d10", "d50", "d90", "d99"};

struct Size {
  int64_t draws, smallest_block, largest_block;
};
Size size_of(StudyScale scale) { return scale == StudyScale::small ? Size{2000, 32, 16384} : Size{20000, 16, 65536}; }

std::string query_name(int64_t dims) {
  return dims == 0 ? "one fixed query" : fmt::format("all queries of {} dimensions", dims);
}

std::vector<int64_t> block_sizes(StudyScale scale) {
  std::vector<int64_t> sizes;
  for (int64_t size = size_of(scale).smallest_block; size <= size_of(scale).largest_block; size *= 2)
    sizes.push_back(size);
  return sizes;
}

std::vector<std::string> columns() {
  std::vector<std::string> names = {"query_dims", "seq_len", "block_size", "blocks", "variance", "draws", "seed"};
  names.insert(names.end(), kShareColumns.begin(), kShareColumns.end());
  names.insert(names.end(), {"formula", "seconds"});
  return names;
}

/// Draws in parts, to be stopped between them, and where a share of the draws has succeeded.
std::optional<Table> run_draws(const LandmarkLaw& law, int64_t draws, int64_t seed, JobMonitor& monitor) {
  constexpr int64_t parts = 100;
  const auto begin = std::chrono::steady_clock::now();
  std::vector<double> needed;
  for (int64_t part = 0; part < parts; ++part) {
    if (monitor.stop_requested()) return std::nullopt;
    append_needed_dimensions(law, draws * (part + 1) / parts, seed, needed);
    monitor.on_progress(static_cast<double>(part + 1) / static_cast<double>(parts));
  }
  std::sort(needed.begin(), needed.end());
  std::vector<std::string> cells = {fmt::format("{}", law.query_dims),
                                    fmt::format("{}", kSeqLen),
                                    fmt::format("{}", law.block_size),
                                    fmt::format("{}", law.blocks),
                                    fmt::format("{}", law.variance),
                                    fmt::format("{}", draws),
                                    fmt::format("{}", seed)};
  for (const double share : kShares)
    cells.push_back(fmt::format("{:.1f}", needed[static_cast<size_t>(share * static_cast<double>(draws))]));
  cells.push_back(fmt::format("{:.1f}", predicted_dimension(law)));
  cells.push_back(
      fmt::format("{:.2f}", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()));
  Table rows(columns());
  rows.add(std::move(cells));
  return rows;
}

std::vector<StudyJob> jobs_of(const StudySettings& settings) {
  std::vector<StudyJob> jobs;
  const int64_t draws = size_of(settings.scale).draws;
  for (int64_t seed = settings.seed; seed < settings.seed + settings.seeds; ++seed) {
    for (const int64_t dims : kQueryDims) {
      for (const int64_t block_size : block_sizes(settings.scale)) {
        const LandmarkLaw law{.blocks = kSeqLen / block_size, .block_size = block_size, .query_dims = dims};
        StudyJob job;
        job.name = fmt::format("queries{}-block{}-seed{}", dims, block_size, seed);
        job.settings = fmt::format("seq_len = {}\nblock_size = {}\nquery_dims = {}\ndraws = {}\nseed = {}\n", kSeqLen,
                                   block_size, dims, draws, seed);
        job.cost = static_cast<double>(draws) * (dims == 0 ? 4 : static_cast<double>(law.blocks));
        job.run = [law, draws, seed](const std::string&, JobMonitor& monitor) {
          return run_draws(law, draws, seed, monitor);
        };
        jobs.push_back(std::move(job));
      }
    }
  }
  return jobs;
}

/// A column of the rows for one kind of query, averaged over seeds; NaN where there is none.
std::vector<double> values(const Table& rows, int64_t dims, const std::vector<int64_t>& blocks,
                           std::string_view column) {
  std::vector<double> means;
  for (const int64_t block : blocks) {
    double sum = 0, count = 0;
    for (size_t row = 0; row < rows.size(); ++row) {
      if (rows.text(row, "query_dims") != std::to_string(dims)) continue;
      if (rows.text(row, "block_size") != std::to_string(block)) continue;
      sum += rows.number(row, column);
      ++count;
    }
    means.push_back(sum / count);
  }
  return means;
}

Figure figure_of(StudyScale scale, const Table& rows) {
  const std::vector<int64_t> blocks = block_sizes(scale);
  const std::vector<double> x(blocks.begin(), blocks.end());
  Panel panel{.title = "Embedding dimension at which 10 % to 50 % of the choices are right",
              .x = {.label = "block size B", .log = true, .tight = true},
              .y = {.label = "embedding dimension d", .log = true},
              .series = {}};
  panel.x.ticks = x;
  for (size_t i = 0; i < kQueryDims.size(); ++i) {
    panel.series.push_back({.name = query_name(kQueryDims[i]),
                            .x = x,
                            .y = values(rows, kQueryDims[i], blocks, "d10"),
                            .colour = i,
                            .style = Series::Style::band,
                            .top = values(rows, kQueryDims[i], blocks, "d50")});
  }
  for (size_t i = 0; i < kQueryDims.size(); ++i) {
    panel.series.push_back({.name = i == 0 ? "formulas" : "",
                            .x = x,
                            .y = values(rows, kQueryDims[i], blocks, "formula"),
                            .colour = i,
                            .style = Series::Style::dashed_line});
  }
  return {"LCAT: embedding dimension against block size",
          "random context model, 1,048,576 tokens, noise 1",
          {panel},
          1,
          360};
}

std::string findings_of(StudyScale scale, const Table& rows) {
  const std::vector<int64_t> blocks = block_sizes(scale);
  std::string text =
      "LCAT finds the block of an earlier occurrence of its query by the block's landmark, the sum of its tokens. In "
      "the "
      "random context model the scores of landmarks are Gaussian, and every draw of them is decided right from one "
      "embedding dimension on; the columns are the dimensions at which a share of the draws is right. The formula for "
      "a "
      "fixed query is `2 B ln(L / B)` (the paper's proposition: d of the order B ln(L / B) is needed and enough); for "
      "all unit queries of an s-dimensional space at once `B (sqrt(2 s) + sqrt(2 ln(L / B)))^2`, an upper bound.\n\n";
  for (const int64_t dims : kQueryDims) {
    std::vector<std::vector<std::string>> table{
        {query_name(dims), "10 %", "50 %", "90 %", "99 %", "formula", "50 % / formula"}};
    const std::vector<double> half = values(rows, dims, blocks, "d50"), formula = values(rows, dims, blocks, "formula");
    std::vector<std::vector<double>> shares;
    for (const char* column : kShareColumns) shares.push_back(values(rows, dims, blocks, column));
    for (size_t i = 0; i < blocks.size(); ++i) {
      table.push_back({fmt::format("B = {}", blocks[i])});
      for (const auto& share : shares)
        table.back().push_back(std::isfinite(share[i]) ? fmt::format("{:.0f}", share[i]) : "-");
      table.back().push_back(std::isfinite(formula[i]) ? fmt::format("{:.0f}", formula[i]) : "-");
      table.back().push_back(std::isfinite(formula[i]) ? fmt::format("{:.2f}", half[i] / formula[i]) : "-");
    }
    text += markdown_table(table) + '\n';
  }
  return text + fmt::format("{} draws for each cell.\n", size_of(scale).draws);
}

StudyPlan plan(const StudySettings& settings) {
  const StudyScale scale = settings.scale;
  return {.columns = columns(),
          .jobs = jobs_of(settings),
          .figure = [scale](const Table& rows) { return figure_of(scale, rows); },
          .findings = [scale](const Table& rows) { return findings_of(scale, rows); }};
}

}  // namespace

extern const Study kLcatDimensionStudy;
constinit const Study kLcatDimensionStudy = {
    .name = "lcat-dimension",
    .summary = "The embedding dimension that LCAT's block choice needs, by block size, at 1,048,576 tokens (figure 4)",
    .plan = plan,
};

}  // namespace margay
