// A rule in Python: three functions of what the node saved and of rows [K, *S], K the seeds.
//
//     push(ctx, *dx) -> dy        pull(ctx, *dgy) -> dgx        curve(ctx, gy, dx) -> dgx
//
// They run with the GIL, above autograd, and record when a graph of the Hessian itself is wanted. What they
// return is checked at each call; what they raise is passed on.
#include "python_rule.h"

#include "rows.h"
#include "rule.h"
#include "scopes.h"

#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <algorithm>
#include <sstream>

namespace py = pybind11;

namespace hesse {

namespace {

// Owned by rules, which a thread without the GIL may be the last to use.
class Callable {
 public:
  explicit Callable(py::object f) : f_(f.release().ptr()) {}
  ~Callable() {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    Py_DECREF(f_);
  }
  Callable(const Callable&) = delete;
  Callable& operator=(const Callable&) = delete;
  py::handle get() const { return f_; }

 private:
  PyObject* f_;
};
using Function = std::shared_ptr<const Callable>;

// One of the three functions, as errors name it.
struct Part {
  const char* name;    // "push"
  const char* result;  // "output": what it returns one of for each
};
constexpr Part kPush{"push", "output"}, kPull{"pull", "input"}, kCurve{"curve", "input"};

std::string type_name(py::handle x) { return py::str(py::type::handle_of(x).attr("__name__")); }

// The i-th tensor that a rule returned; None: zero.
Tensor checked(py::handle item, const Shape& shape, int64_t seeds, at::Device device,
               const std::string& what) {
  if (item.is_none()) return {};
  if (!THPVariable_Check(item.ptr())) {
    throw py::type_error(what + " is a " + type_name(item) + ", expected a Tensor or None");
  }
  const auto& t = THPVariable_Unpack(item.ptr());
  std::ostringstream expected, got;
  Shape size{seeds};
  size.append(shape.begin(), shape.end());
  expected << c10::IntArrayRef(size);
  if (t.layout() != at::kStrided || t.device() != device || !t.is_floating_point()) {
    got << t.dtype() << " on " << t.device() << " with layout " << t.layout();
    throw py::type_error(what + " is " + got.str() +
                         ", expected a strided tensor of a real floating dtype on " + device.str());
  }
  if (t.sizes() != c10::IntArrayRef(size)) {
    got << t.sizes();
    throw py::value_error(what + " has shape " + got.str() + ", expected " + expected.str() + ": " +
                          std::to_string(seeds) + " seeds, then the shape of the value");
  }
  // Memory that torch does not own may be somebody's, whatever its count of uses.
  return t.storage().resizable() ? t.contiguous() : t.clone(at::MemoryFormat::Contiguous);
}

// What a rule returned, one tensor for each of `shapes`. Those not in `checks` are not looked at.
std::vector<Tensor> unpack(py::object result, const std::vector<Shape>& shapes,
                           const std::vector<bool>& checks, int64_t seeds, at::Device device,
                           const std::string& rule, const Part& part) {
  if (THPVariable_Check(result.ptr())) result = py::make_tuple(result);
  if (!py::isinstance<py::tuple>(result) && !py::isinstance<py::list>(result)) {
    throw py::type_error(rule + part.name + " returned a " + type_name(result) +
                         ", expected a Tensor or a tuple, with None for what is zero");
  }
  const auto items = py::reinterpret_borrow<py::sequence>(result);
  if (items.size() != shapes.size()) {
    throw py::value_error(rule + part.name + " returned " + std::to_string(items.size()) +
                          " values, expected " + std::to_string(shapes.size()) + ", one for each " +
                          part.result);
  }
  std::vector<Tensor> out(shapes.size());
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (!checks[i]) continue;
    out[i] = checked(items[i], shapes[i], seeds, device,
                     rule + "what " + part.name + " returned for " + part.result + " " + std::to_string(i));
  }
  return out;
}

py::tuple as_tuple(const std::vector<Tensor>& ts) {
  py::tuple tuple(ts.size());
  for (size_t i = 0; i < ts.size(); ++i) tuple[i] = py::cast(ts[i]);
  return tuple;
}

// The node as Python knows it: the ctx of a Function, `grad_fn` of any other op.
py::object context(const Local& l) {
  return py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(share(*l.node)));
}

// call(ctx, rows) runs the function.
template <class Call>
Tangents apply(const Local& l, const Part& part, const Tangents& in, const std::vector<Shape>& shapes,
               const std::vector<bool>& wanted, const Call& call) {
  return on_rows(in, shapes, wanted, [&](const std::vector<Tensor>& rows, int64_t seeds, int64_t) {
    const auto any = std::find_if(rows.begin(), rows.end(), [](const Tensor& r) { return r.defined(); });
    const at::Device device = any->device();
    const AutogradScope scope(c10::GradMode::is_enabled());
    const py::gil_scoped_acquire gil;
    return unpack(call(context(l), as_tuple(rows)), shapes, wanted, seeds, device,
                  "hesse: the rule of " + l.node->name() + ": ", part);
  });
}

Rule rule_of(py::object push, py::object pull, py::object curve) {
  auto keep = [](py::object& f) { return std::make_shared<const Callable>(std::move(f)); };
  Rule rule;
  rule.of_user = true;
  rule.push = [f = keep(push)](Local& l, const Tangents& dx) {
    return apply(l, kPush, dx, l.out_shape, l.used,
                 [&](const py::object& ctx, const py::tuple& rows) { return f->get()(ctx, *rows); });
  };
  rule.pull = [f = keep(pull)](Local& l, const Tangents& dgy) {
    return apply(l, kPull, dgy, l.in_shape, l.wanted,
                 [&](const py::object& ctx, const py::tuple& rows) { return f->get()(ctx, *rows); });
  };
  if (curve.is_none()) return rule;
  rule.curve = [f = keep(curve)](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    return apply(l, kCurve, dx, l.in_shape, l.wanted, [&](const py::object& ctx, const py::tuple& rows) {
      return f->get()(ctx, as_tuple(gy), rows);
    });
  };
  return rule;
}

// What removes a rule again.
struct UserRule {
  std::string name;
  RulePtr rule;
};

}  // namespace

void bind_user_rules(py::module_& m) {
  py::class_<UserRule>(m, "UserRule").def("remove", [](UserRule& r) {
    remove_user_rule(r.name, r.rule);
    r.rule = nullptr;
  });
  m.def(
      "add_user_rule",
      [](const std::string& name, py::object push, py::object pull, py::object curve, bool override) {
        return UserRule{
            name, add_user_rule(name, rule_of(std::move(push), std::move(pull), std::move(curve)), override)};
      },
      py::arg("name"), py::arg("push"), py::arg("pull"), py::arg("curve"), py::arg("override"));
}

}  // namespace hesse
