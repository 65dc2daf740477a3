package api

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	SeverityOK      Severity = "ok"
	SeverityWarning Severity = "warning" // something is restricted, or wants a look
	SeverityError   Severity = "error"   // something does not work, or is in danger
)

// Finding is what one check of banger doctor has found.
type Finding struct {
	Group    string   `json:"group" doc:"What it is about, e.g. network."`
	Check    string   `json:"check" doc:"Which check found it; words that do not change, e.g. subnet."`
	Severity Severity `json:"severity" enum:"ok,warning,error" doc:"How bad it is."`
	Message  string   `json:"message" doc:"What it is."`
	Meaning  string   `json:"meaning,omitempty" doc:"What it means for VMs and users."`
	Advice   string   `json:"advice,omitempty" doc:"What to do."`
	Fixable  bool     `json:"fixable,omitempty" doc:"Whether a repair sees to it."`
}

// Diagnosis is what banger doctor has found out.
type Diagnosis struct {
	Version  string    `json:"version" doc:"Version of the program that looked."`
	Served   bool      `json:"served" doc:"Whether that was the daemon that serves, which knows what it is doing meanwhile."`
	Findings []Finding `json:"findings" doc:"All of them, good ones too, by group."`
	Repairs  []Repair  `json:"repairs,omitempty" doc:"What was repaired, where that was asked for; the findings are those after it."`
}

// Repair is something that was put in order.
type Repair struct {
	Message string `json:"message" doc:"What was done."`
	Error   *Error `json:"error,omitempty" doc:"Why it was not done."`
}
