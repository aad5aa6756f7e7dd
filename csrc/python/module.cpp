// The Python extension module: loading it registers the ops and the interception of rules.
#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include "memory/arena.h"
#include "model/intercept.h"
#include "ops/product.h"
#include "rules/rules.h"

namespace fusum {
namespace {

// An operand as Python has it: dtypes, layouts and memory formats are numbers to the dispatcher.
py::object to_python(const c10::IValue& value, const c10::TypePtr& type) {
  auto kind = type->kind();
  if (kind == c10::TypeKind::OptionalType) {
    return value.isNone() ? py::none() : to_python(value, type->expectRef<c10::OptionalType>().getElementType());
  }
  if (kind == c10::TypeKind::ScalarTypeType && value.isInt()) {
    return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(torch::getTHPDtype(value.toScalarType())));
  }
  if (kind == c10::TypeKind::LayoutType && value.isInt()) {
    return py::cast(value.toLayout());
  }
  if (kind == c10::TypeKind::MemoryFormatType && value.isInt()) {
    return py::cast(value.toMemoryFormat());
  }
  return torch::jit::toPyObject(value);
}

// Calls follow(operator, args, kwargs) with the operands of the stack, and leaves its result there.
void call_python(const py::function& follow, const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const py::gil_scoped_acquire gil;
  const auto& schema = op.schema();
  const auto operands = torch::jit::pop(*stack, schema.arguments().size());
  py::list args;
  py::dict kwargs;
  for (size_t i = 0; i < operands.size(); ++i) {
    const auto& argument = schema.arguments()[i];
    py::object operand = to_python(operands[i], argument.real_type());
    if (argument.kwarg_only()) {
      kwargs[py::str(argument.name())] = std::move(operand);
    } else {
      args.append(std::move(operand));
    }
  }
  const py::object api = py::reinterpret_borrow<py::object>(torch::detail::getTorchApiFunction(op));
  const py::object result = follow(api, py::tuple(args), kwargs);
  const auto& returns = schema.returns();
  if (returns.size() == 1) {
    torch::jit::push(*stack, torch::jit::toIValue(result, returns[0].real_type()));
    return;
  }
  const auto results = py::cast<py::sequence>(result);
  for (size_t i = 0; i < returns.size(); ++i) {
    torch::jit::push(*stack, torch::jit::toIValue(results[i], returns[i].real_type()));
  }
}

std::shared_ptr<rules::Table> make_table(int relu, const py::function& look, const py::function& follow) {
  // Tables live as long as the process; their Python functions are never given back.
  auto* asked = new py::function(look);
  auto* followed = new py::function(follow);
  const auto find = [asked](const c10::OperatorHandle& op) {
    const py::gil_scoped_acquire gil;
    const py::object api = py::reinterpret_borrow<py::object>(torch::detail::getTorchApiFunction(op));
    return static_cast<rules::Action>(py::cast<int>((*asked)(api)));
  };
  return std::make_shared<rules::Table>(
      static_cast<rules::Relu>(relu), find,
      [followed](const c10::OperatorHandle& op, torch::jit::Stack* stack) { call_python(*followed, op, stack); });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled kernels of fusum.";
  py::class_<rules::Table, std::shared_ptr<rules::Table>>(m, "Table").def(py::init(&make_table));
  py::class_<rules::Tape, c10::intrusive_ptr<rules::Tape>>(m, "Tape")
      .def(py::init([](int64_t references) { return c10::make_intrusive<rules::Tape>(references); }))
      .def("start", &rules::Tape::start)
      .def_property_readonly("finished", &rules::Tape::finished)
      .def_readwrite("each", &rules::Tape::each)
      .def_readwrite("copies", &rules::Tape::copies)
      .def_readonly("overwritten", &rules::Tape::overwritten)
      .def_readwrite("first", &rules::Tape::first)
      .def_readwrite("count", &rules::Tape::count)
      .def_readwrite("level", &rules::Tape::level)
      .def_readonly("failure", &rules::Tape::failure)
      .def_readonly("unpairable", &rules::Tape::unpairable);
  py::class_<rules::Pass, std::shared_ptr<rules::Pass>>(m, "Pass").def(py::init(
      [](std::shared_ptr<rules::Table> table, c10::intrusive_ptr<rules::Tape> tape, bool recording, double eps) {
        return std::make_shared<rules::Pass>(rules::Pass{std::move(table), std::move(tape), recording, eps});
      }));
  py::class_<memory::Arena>(m, "Arena")
      .def(py::init<>())
      .def("enter", &memory::Arena::enter)
      .def("leave", &memory::Arena::leave);
  m.def("kept", &memory::kept);
  py::class_<model::Call>(m, "Call")
      .def(py::init<>())
      .def("enter", &model::Call::enter, py::arg("plainly") = false, py::arg("sparing") = false)
      .def("leave", &model::Call::leave);
  struct OurWay {
    bool plainly;
    bool back;
    model::On on;
  };
  py::class_<OurWay>(m, "OurWay")
      .def(py::init([](bool plainly, bool back) { return OurWay{plainly, back, {}}; }), py::kw_only(),
           py::arg("plainly") = false, py::arg("back") = false)
      .def("__enter__", [](OurWay& way) { way.on.enter(way.plainly, way.back); })
      .def("__exit__", [](OurWay& way, const py::args&) { way.on.leave(); });
  m.def("goes_back_our_way", &model::goes_back);
  m.def("multiplies_faster", &is_onednn_faster);
  py::class_<rules::On>(m, "On").def(py::init<>()).def("enter", &rules::On::enter).def("leave", &rules::On::leave);
}

}  // namespace fusum
