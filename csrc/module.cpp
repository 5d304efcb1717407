// The Python module hesse._C. Beside python_rule.cpp the only file that knows Python.
#include "answers.h"
#include "assemble.h"
#include "batch.h"
#include "inner.h"
#include "kernels/backend.h"
#include "kernels/combine.h"
#include "kernels/mirror.h"
#include "kernels/pack.h"
#include "kernels/scatter.h"
#include "kernels/workspace.h"
#include "python_rule.h"
#include "python_tape.h"

#include <ATen/ATen.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <mutex>

namespace py = pybind11;

namespace hesse {

namespace {

// A linearization in Python's hands, with what its last sweep cost.
struct Handle {
  explicit Handle(Linearization l) : lin(std::move(l)) {}
  Linearization lin;
  SweepReport report;
  std::mutex busy;  // rules keep what they derive in `lin`
};

// Whatever the current device is, kernels run on that of the inputs, in its current stream.
c10::OptionalDeviceGuard on_device_of(const std::vector<Tensor>& inputs) {
  return inputs.empty() ? c10::OptionalDeviceGuard() : c10::OptionalDeviceGuard(inputs[0].device());
}

// One question at a time, each with a report of its own.
template <class Answer>
auto ask(Handle& h, Answer answer) {
  const std::scoped_lock lock(h.busy);
  const auto guard = on_device_of(h.lin.inputs);
  check_unchanged(h.lin);
  h.report = SweepReport{};
  return answer(h.lin, h.report);
}

std::vector<Tensor> unwrap(const MaybeTensors& list) {
  std::vector<Tensor> out;
  for (const auto& t : list) out.push_back(t.value_or(Tensor()));
  return out;
}

py::dict report_of(const Handle& h) {
  std::map<std::string, int64_t> native, user, autograd, loops;
  for (size_t s = 0; s < h.lin.graph.steps.size(); ++s) {
    const Step& step = h.lin.graph.steps[s];
    const Local& local = h.lin.locals[s];
    if (step.rule->of_user) {
      ++user[step.name];
    } else if (local.inner_rule && local.inner_rule->of_user) {  // applied in place to a view
      ++user[local.inner->node->name()];
    } else {
      ++(step.rule->native ? native : autograd)[step.name];
    }
    if (local.driven.looped || (local.inner && local.inner->driven.looped)) ++loops[step.name];
  }
  py::dict d;
  d["steps"] = h.lin.graph.steps.size();
  d["native_ops"] = native;
  d["user_ops"] = user;
  d["autograd_ops"] = autograd;
  d["looped_ops"] = loops;
  d["symmetric"] = h.lin.graph.symmetric;
  const Ledger& l = h.report.ledger;
  d["core_elements"] = l.core_elements;
  d["flops"] = l.flops;
  d["gemms"] = l.gemms;
  d["densified"] = std::vector<std::string>(l.densified.begin(), l.densified.end());
  d["widest_terms"] = l.widest_terms;
  d["widest_bytes"] = l.widest_bytes;
  d["chunk_size"] = h.report.chunk_size;
  d["chunks"] = h.report.chunks;
  return d;
}

}  // namespace

namespace {

// The tangent algebra, for the tests of its laws.
struct RawTerm {
  std::vector<std::tuple<int64_t, int64_t, int64_t>> dims;
  int64_t k0, v0;
  double alpha;
  std::optional<Tensor> coef, core;
};

Tangent tangent_from(int64_t K, const std::vector<int64_t>& shape, const Tensor& like,
                     const std::vector<RawTerm>& raw) {
  Tangent t;
  t.K = K;
  t.shape = Shape(shape.begin(), shape.end());
  t.options = like.options();
  for (const RawTerm& r : raw) {
    Term term;
    for (const auto& [n, ks, vs] : r.dims) term.dims.push_back({n, ks, vs});
    term.k0 = r.k0;
    term.v0 = r.v0;
    term.alpha = r.alpha;
    term.coef = r.coef.value_or(Tensor());
    term.core = r.core.value_or(Tensor());
    t.terms.push_back(std::move(term));
  }
  return t;
}

// The kernels, for the tests that hold them against slow loops.
void bind_kernels(py::module_& m) {
  m.def("instruction_sets", &kernels::instruction_sets);
  m.def("use_instruction_set", &kernels::use_instruction_set, py::arg("name"));
  m.def(
      "combine",
      [](bool add, const Tensor& out, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
         int64_t offset, const std::optional<Tensor>& a, const std::optional<Tensor>& b, double alpha) {
        const c10::NoGradGuard no_grad;
        kernels::combine(add ? kernels::Into::add : kernels::Into::write, out, sizes, strides, offset,
                         a.value_or(Tensor()), b.value_or(Tensor()), alpha);
      },
      py::arg("add"), py::arg("out"), py::arg("sizes"), py::arg("strides"), py::arg("offset"), py::arg("a"),
      py::arg("b"), py::arg("alpha"));
  using Ints = std::vector<int64_t>;
  using Factor = std::optional<Tensor>;
  using RawPart = std::tuple<Ints, Ints, int64_t, Factor, Factor, double>;
  m.def(
      "write_sum",
      [](const Tensor& out, const std::vector<RawPart>& raw) {
        const c10::NoGradGuard no_grad;
        std::vector<kernels::Part> parts;
        for (const auto& [sizes, strides, offset, a, b, alpha] : raw) {
          parts.push_back({Shape(sizes.begin(), sizes.end()), Shape(strides.begin(), strides.end()), offset,
                           a.value_or(Tensor()), b.value_or(Tensor()), alpha});
        }
        kernels::write_sum(out, parts);
      },
      py::arg("out"), py::arg("parts"));
  using RawAxis = std::tuple<int64_t, int64_t, std::vector<std::pair<Tensor, int64_t>>>;
  m.def(
      "scatter_add",
      [](const Tensor& out, const std::vector<RawAxis>& raw, int64_t offset, const Factor& a, const Factor& b,
         double alpha) {
        const c10::NoGradGuard no_grad;
        std::vector<kernels::PlacedAxis> axes;
        for (const auto& [n, stride, by] : raw) {
          axes.push_back({n, stride, {}});
          TORCH_CHECK(by.size() <= 2, "hesse: an axis is placed by two indices at most");
          for (size_t i = 0; i < by.size(); ++i) axes.back().by[i] = {by[i].first, by[i].second};
        }
        kernels::scatter_add(out, axes, offset, a.value_or(Tensor()), b.value_or(Tensor()), alpha);
      },
      py::arg("out"), py::arg("axes"), py::arg("offset"), py::arg("a"), py::arg("b"), py::arg("alpha"));
  m.def(
      "pack_lower",
      [](const Tensor& packed, const Tensor& matrix, int64_t row, int64_t column) {
        const c10::NoGradGuard no_grad;
        kernels::pack_lower(packed, matrix, row, column);
      },
      py::arg("packed"), py::arg("matrix"), py::arg("row"), py::arg("column"));
  m.def("drop_idle_blocks", &kernels::drop_idle_blocks);
  m.def("mirror_upper", &kernels::mirror_upper, py::arg("matrix"));
  m.def(
      "fresh",
      [](const std::vector<int64_t>& size, const Tensor& like) {
        return kernels::fresh(size, like.options());
      },
      py::arg("size"), py::arg("like"));
}

void bind_tangent(py::module_& m) {
  using Ints = std::vector<int64_t>;
  py::class_<RawTerm>(m, "Term").def(
      py::init([](std::vector<std::tuple<int64_t, int64_t, int64_t>> dims, int64_t k0, int64_t v0,
                  double alpha, std::optional<Tensor> coef, std::optional<Tensor> core) {
        return RawTerm{std::move(dims), k0, v0, alpha, std::move(coef), std::move(core)};
      }),
      py::arg("dims"), py::arg("k0"), py::arg("v0"), py::arg("alpha"), py::arg("coef"), py::arg("core"));
  py::class_<Tangent>(m, "Tangent")
      .def(py::init(&tangent_from), py::arg("K"), py::arg("shape"), py::arg("like"), py::arg("terms"))
      .def_property_readonly("K", [](const Tangent& t) { return t.K; })
      .def_property_readonly("shape", [](const Tangent& t) { return Ints(t.shape.begin(), t.shape.end()); })
      .def_property_readonly("num_terms", [](const Tangent& t) { return t.terms.size(); })
      .def_property_readonly("stored",
                             [](const Tangent& t) {
                               int64_t n = 0;
                               for (const Term& term : t.terms) n += term.stored();
                               return n;
                             })
      .def("dense", [](const Tangent& t) { return dense(t); })
      .def("scale", [](const Tangent& t, const Tensor& c) { return scale(t, c); })
      .def("scale", [](const Tangent& t, double alpha) { return scale(t, alpha); })
      .def("real", [](const Tangent& t) { return real(t); })
      .def("conj", [](const Tangent& t) { return conj(t); })
      .def("view", [](const Tangent& t, const Ints& shape) { return view(t, shape); })
      .def("expand", [](const Tangent& t, const Ints& shape) { return expand(t, shape); })
      .def("sum_to", [](const Tangent& t, const Ints& shape) { return sum_to(t, shape); })
      .def("sum", [](const Tangent& t, const Ints& axes, bool keepdim) { return sum(t, axes, keepdim); })
      .def("take",
           [](const Tangent& t, const Ints& size, const Ints& stride, int64_t offset) {
             return take(t, {Shape(size.begin(), size.end()), Shape(stride.begin(), stride.end()), offset});
           })
      .def("put",
           [](const Tangent& t, const Ints& size, const Ints& stride, int64_t offset, const Ints& shape) {
             return put(t, {Shape(size.begin(), size.end()), Shape(stride.begin(), stride.end()), offset},
                        shape);
           })
      .def("einsum",
           [](const Tangent& t, const std::string& t_axes, const Tensor& w, const std::string& w_axes,
              const std::string& out_axes) { return einsum(t, t_axes, w, w_axes, out_axes); })
      .def("flip",
           [](const Tangent& t, const Ints& axes) {
             Ints sizes, dims;
             for (size_t i = 0; i < axes.size(); ++i) {
               sizes.push_back(t.shape[axes[i]]);
               dims.push_back(static_cast<int64_t>(i) + 2);
             }
             return map_axes(t, axes, sizes,
                             [&](const Tensor& rows, const Tensor&) { return at::flip(rows, dims); });
           })
      .def("map_axis",  // by the matrices w[carried axes, out, in]
           [](const Tangent& t, int64_t axis, const Tensor& w) {
             auto apply = [](const Tensor& rows, const Tensor& known) {
               return at::einsum("rdi,doi->rdo", {rows, known});
             };
             return map_axes(t, {axis}, {w.size(-2)}, apply, w);
           })
      .def("pick_axis",
           [](const Tangent& t, int64_t axis, const Tensor& index) { return pick_axis(t, axis, index); })
      .def("unpick_axis", [](const Tangent& t, int64_t axis, const Tensor& index,
                             int64_t size) { return unpick_axis(t, axis, index, size); })
      .def("map_rows",  // by the matrix w[out, in] on flat values
           [](const Tangent& t, const Tensor& w) {
             return map_rows(t, {w.size(0)}, [&](const Tensor& rows) {
               return rows.reshape({rows.size(0), -1}).matmul(w.t());
             });
           })
      .def("add",
           [](const Tangent& t, const Tangent& other) {
             Tangent sum = t;
             accumulate(sum, other);
             return sum;
           })
      .def("inner",
           [](const Tangent& t, const Tangent& other, int64_t n) {
             const Tensor out = at::zeros({t.K / n, n, n}, t.options);
             add_inner(out, t, other);
             return out;
           })
      .def("restrict_seeds", [](const Tangent& t, int64_t k_end) {
        Tangent r = t;
        restrict_seeds(r, k_end);
        return r;
      });
}

bool forget_error() {
  const py::gil_scoped_acquire gil;
  if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception)) return false;
  PyErr_Clear();
  return true;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "The engine of hesse: linearize a recorded graph, sweep it, assemble its Hessian.";
  register_rules();
  forget_python_error = forget_error;
  py::register_exception<Unsupported>(m, "Unsupported", PyExc_RuntimeError);
  py::register_exception<Mixed>(m, "Mixed", PyExc_RuntimeError);
  py::register_exception<NotTwiceDifferentiable>(m, "NotTwiceDifferentiable", PyExc_RuntimeError);
  m.attr("torch_version") = TORCH_VERSION;
  m.def("hide_rules", &hide_rules, py::arg("names"), "Lets the autograd rule stand in for these nodes.");
  m.def("rule_names", &rule_names, "Autograd nodes with a native rule.");

  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<Handle>(m, "Linearization")
      .def(
          "gradient",
          [](Handle& h) {
            return ask(h,
                       [](auto& lin, auto&) { return lin.gradient.empty() ? gradient(lin) : lin.gradient; });
          },
          release())
      .def(
          "seed",
          [](Handle& h, const MaybeTensors& gys) {
            ask(h, [&](auto& lin, auto&) { seed(lin, unwrap(gys)); });
          },
          py::arg("gys"), release())
      .def(
          "hessian",
          [](Handle& h, std::optional<int64_t> chunk_size, bool dtype_of_row) {
            return ask(
                h, [&](auto& lin, auto& report) { return hessian(lin, {chunk_size, dtype_of_row}, report); });
          },
          py::arg("chunk_size"), py::arg("dtype_of_row"), release())
      .def(
          "push",
          [](Handle& h, const MaybeTensors& dxs) {
            return ask(h, [&](auto& lin, auto& report) { return push(lin, dxs, report); });
          },
          release())
      .def(
          "pull",
          [](Handle& h, const MaybeTensors& dgys) {
            return ask(h, [&](auto& lin, auto& report) { return pull(lin, dgys, report); });
          },
          release())
      .def(
          "hvp",
          [](Handle& h, const MaybeTensors& dxs) {
            return ask(h, [&](auto& lin, auto& report) { return products(lin, dxs, report); });
          },
          release())
      .def(
          "quadratic",
          [](Handle& h, const MaybeTensors& dxs) {
            return ask(h, [&](auto& lin, auto& report) { return quadratic(lin, dxs, report); });
          },
          release())
      .def(
          "rows",
          [](Handle& h, const std::vector<int64_t>& index) {
            return ask(h, [&](auto& lin, auto& report) { return rows(lin, index, report); });
          },
          release())
      .def(
          "block",
          [](Handle& h, size_t i, size_t j) {
            return ask(h, [&](auto& lin, auto& report) { return block(lin, i, j, report); });
          },
          release())
      .def(
          "diagonal",
          [](Handle& h) { return ask(h, [](auto& lin, auto& report) { return diagonal(lin, report); }); },
          release())
      .def(
          "lower_triangle",
          [](Handle& h) {
            return ask(h, [](auto& lin, auto& report) { return lower_triangle(lin, report); });
          },
          release())
      .def(
          "hessians",
          [](Handle& h, const std::vector<MaybeTensors>& gys) {
            return ask(h, [&](auto& lin, auto& report) {
              std::vector<std::vector<Tensor>> seeds;
              for (const MaybeTensors& g : gys) seeds.push_back(unwrap(g));
              return hessians(lin, seeds, report);
            });
          },
          py::arg("gys"), release())
      .def(
          "batch_hessian",
          [](Handle& h, const std::vector<std::vector<Tensor>>& gys, bool assume_separable) {
            return ask(h, [&](auto& lin, auto& report) {
              return (assume_separable ? assumed_batch_hessian : batch_hessian)(lin, gys, report);
            });
          },
          py::arg("gys"), py::arg("assume_separable"), release())
      .def_property_readonly("symmetric", [](const Handle& h) { return h.lin.graph.symmetric; })
      .def("report", &report_of);
  m.def(
      "linearize",
      [](std::vector<Tensor> outputs, std::vector<Tensor> inputs, const std::optional<MaybeTensors>& gys,
         bool create_graph, bool keep) {
        const auto guard = on_device_of(inputs);
        return std::make_unique<Handle>(linearize(std::move(outputs), std::move(inputs),
                                                  gys ? unwrap(*gys) : std::vector<Tensor>(), create_graph,
                                                  keep));
      },
      py::arg("outputs"), py::arg("inputs"), py::arg("gys"), py::arg("create_graph"), py::arg("keep") = false,
      release());
  bind_user_rules(m);
  bind_tangent(m);
  bind_kernels(m);
  bind_tape(m);
}

}  // namespace hesse
