package cli

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"banger/api"
)

// Whatever the daemon says of an object can be seen with show, by people too.
func TestShowIsComplete(t *testing.T) {
	complete(t, vmKind.details)
	complete(t, imageKind.details)
	complete(t, kernelKind.details)
	complete(t, systemKind.details)
}

func complete[T any](t *testing.T, details []column[T]) {
	t.Helper()
	var zero T
	flat := func(v T) []string { return slices.Concat(lines(details, v)...) }
	typ := reflect.TypeFor[T]()
	for i := range typ.NumField() {
		var v T
		set(t, reflect.ValueOf(&v).Elem().Field(i))
		if slices.Equal(flat(v), flat(zero)) {
			t.Errorf("show says nothing of %s.%s", typ.Name(), typ.Field(i).Name)
		}
	}
}

// set gives a field a value that is not its zero.
func set(t *testing.T, field reflect.Value) {
	t.Helper()
	switch field.Interface().(type) {
	case time.Time:
		field.Set(reflect.ValueOf(time.Now()))
		return
	case *time.Time:
		field.Set(reflect.ValueOf(new(time.Now())))
		return
	}
	switch field.Kind() {
	case reflect.String:
		field.SetString("something")
	case reflect.Bool:
		field.SetBool(true)
	case reflect.Int, reflect.Int64:
		field.SetInt(4711)
	case reflect.Float64:
		field.SetFloat(4711)
	case reflect.Pointer:
		field.Set(reflect.New(field.Type().Elem()))
		set(t, field.Elem())
	case reflect.Map:
		field.Set(reflect.MakeMap(field.Type()))
		field.SetMapIndex(reflect.ValueOf("something"), reflect.ValueOf("else"))
	case reflect.Uint32:
		field.SetUint(4711)
	case reflect.Slice:
		field.Set(reflect.MakeSlice(field.Type(), 1, 1))
		if field.Index(0).Kind() != reflect.Struct {
			set(t, field.Index(0))
		}
	case reflect.Struct:
		for i := range field.NumField() {
			set(t, field.Field(i))
		}
	default:
		t.Fatalf("a field of kind %v", field.Kind())
	}
}

func TestListOfNothing(t *testing.T) {
	d, stdout, _ := without(t)
	if err := d.printJSON([]api.VM{}); err != nil || stdout.String() != "[]\n" {
		t.Errorf("got %q, %v", stdout, err)
	}
}
