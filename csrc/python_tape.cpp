// A tape for Python: ops come from a dispatch mode, as it meets them below autograd.
#include "python_tape.h"

#include "tape.h"

#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <mutex>

namespace py = pybind11;

namespace hesse {

namespace {

struct PlayedTape {
  Tape tape;
  std::unique_ptr<TapeScope> scope;
  std::mutex busy;  // a run has one memory
};

void collect(const py::handle& value, std::vector<Tensor>& tensors) {
  if (THPVariable_Check(value.ptr())) {
    tensors.push_back(THPVariable_Unpack(value.ptr()));
  } else if (value.is_none()) {
    tensors.emplace_back();
  } else if (py::isinstance<py::tuple>(value) || py::isinstance<py::list>(value)) {
    for (const py::handle v : value) collect(v, tensors);
  }
}

void ran(PlayedTape& t, const std::string& name, const std::string& overload, const py::tuple& args,
         const py::dict& kwargs, const py::object& results) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
  const torch::jit::ToIValueAllowNumbersAsTensors numbers(true);
  torch::jit::Stack stack = torch::jit::createStackForSchema(
      op.schema(), torch::jit::tuple_slice(args), py::reinterpret_borrow<py::kwargs>(kwargs), std::nullopt);
  std::vector<Tensor> tensors;
  collect(results, tensors);
  t.tape.ran(op, std::move(stack), tensors);
}

}  // namespace

void bind_tape(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::register_exception<Changed>(m, "Changed", PyExc_RuntimeError);
  py::class_<PlayedTape>(m, "Tape")
      .def(py::init<>())
      .def("start", [](PlayedTape& t) { t.scope = std::make_unique<TapeScope>(t.tape); })
      .def("stop", [](PlayedTape& t) { t.scope.reset(); })
      .def("ran", &ran, py::arg("name"), py::arg("overload"), py::arg("args"), py::arg("kwargs"),
           py::arg("results"))
      .def(
          "finish",
          [](PlayedTape& t, std::vector<Tensor> inputs, const std::vector<Tensor>& outputs) {
            t.tape.finish(std::move(inputs), outputs);
            return t.tape.refusal();
          },
          py::arg("inputs"), py::arg("outputs"))
      .def("__len__", [](const PlayedTape& t) { return t.tape.size(); })
      .def("fits", [](const PlayedTape& t, const std::vector<Tensor>& given) { return t.tape.fits(given); })
      .def(
          "play",
          [](PlayedTape& t, const std::vector<Tensor>& given) {
            const std::scoped_lock lock(t.busy);
            t.tape.load(given);
            t.tape.run(0, t.tape.size());
            return t.tape.take();
          },
          py::arg("inputs"), release())
      .def(
          "load", [](PlayedTape& t, const std::vector<Tensor>& given) { t.tape.load(given); }, release())
      .def(
          "run", [](PlayedTape& t, size_t begin, size_t end) { t.tape.run(begin, end); }, py::arg("begin"),
          py::arg("end"), release())
      .def(
          "take", [](PlayedTape& t) { return t.tape.take(); }, release())
      .def(
          "first_of_outputs", [](const PlayedTape& t, size_t n) { return t.tape.first_of_outputs(n); },
          py::arg("bytes"))
      .def("pin", [](PlayedTape& t, size_t end) { t.tape.pin(end); }, py::arg("end"));
}

}  // namespace hesse
