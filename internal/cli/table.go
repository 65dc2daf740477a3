package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
)

// table prints rows below a header; empty, if not "", stands in for no rows.
func (d *deps) table(empty string, header []string, rows [][]string) error {
	if len(rows) == 0 && empty != "" {
		_, err := fmt.Fprintln(d.stderr, empty)
		return err
	}
	w := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

func str(v any) string { return fmt.Sprint(v) }

func size(n int64) string { return units.BytesSize(float64(n)) }

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }
